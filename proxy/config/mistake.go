package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Mistake is one thing wrong with a configuration.
type Mistake struct {
	// File is the name given to [Parse], or $NAME for an environment variable.
	File string `json:"file"`
	// Line and Column count from 1. They are 0 where there is no line to name.
	Line   int `json:"line"`
	Column int `json:"column"`
	// Path is the key, such as listeners[2].address. Empty means the whole file.
	Path   string `json:"path"`
	Reason string `json:"reason"`
	// Hint says what to write instead. It may be empty.
	Hint string `json:"hint"`
}

// Error is file:line: path: reason (hint).
func (m Mistake) Error() string {
	var b strings.Builder
	b.WriteString(m.File)
	if m.Line > 0 {
		fmt.Fprintf(&b, ":%d", m.Line)
	}
	if m.Path != "" {
		b.WriteString(": " + m.Path)
	}
	b.WriteString(": " + m.Reason)
	if m.Hint != "" {
		b.WriteString(" (" + m.Hint + ")")
	}
	return b.String()
}

// Mistakes is every mistake of a configuration, in the order of its lines. It
// is the error that [Load] and [Parse] return, and is then never empty.
type Mistakes []Mistake

// Error has one mistake a line.
func (ms Mistakes) Error() string {
	lines := make([]string, len(ms))
	for i, m := range ms {
		lines[i] = m.Error()
	}
	return strings.Join(lines, "\n")
}

// position is where a value was written.
type position struct {
	file         string
	line, column int
}

// report gathers mistakes and knows where each key was written.
type report struct {
	file     string
	mistakes Mistakes
	written  map[string]position
	// refused holds the paths whose values were taken out. Nothing more is
	// said about them: what stands there now is a default, not what the user
	// wrote.
	refused map[string]bool
}

func newReport(file string) *report {
	return &report{file: file, written: map[string]position{}, refused: map[string]bool{}}
}

// add reports a mistake, unless the value was refused already.
func (r *report) add(path, reason, hint string) {
	if !r.isRefused(path) {
		r.addAt(r.find(path), path, reason, hint)
	}
}

// refuse reports a value that cannot be decoded. It returns false, so that a
// check can end with it.
func (r *report) refuse(path, reason, hint string) bool {
	r.add(path, reason, hint)
	r.refused[path] = true
	return false
}

func (r *report) addAt(p position, path, reason, hint string) {
	r.mistakes = append(r.mistakes, Mistake{p.file, p.line, p.column, path, reason, hint})
}

// find is the position of a key, or of what should have held it.
func (r *report) find(path string) position {
	for ; path != ""; path = parent(path) {
		if p, ok := r.written[path]; ok {
			return p
		}
	}
	return position{file: r.file, line: 1, column: 1}
}

// isRefused reports whether the key, or what holds it, was refused.
func (r *report) isRefused(path string) bool {
	for ; path != ""; path = parent(path) {
		if r.refused[path] {
			return true
		}
	}
	return r.refused[""]
}

// sorted is the mistakes by line: the environment's, which have none, come first.
func (r *report) sorted() Mistakes {
	slices.SortStableFunc(r.mistakes, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return r.mistakes
}

// parent cuts the last key or index from a path.
func parent(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

// join puts a key below a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// item is the path of an element of a list.
func item(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
