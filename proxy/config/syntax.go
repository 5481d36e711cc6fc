package config

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
)

var (
	yamlError = regexp.MustCompile(`(?s)^(?:yaml: )?(?:line (\d+): )?(.*)$`)
	// Errors of the YAML library's parser, unlike those of its scanner, count
	// lines from 0, and name none if it is the first.
	countedFromZero = regexp.MustCompile(`expected (<|node content|'-' indicator|key|',' or)|found (undefined tag handle|duplicate|incompatible)`)
	unknownAnchor   = regexp.MustCompile(`unknown anchor '(.*)' referenced`)
)

// syntaxHints say what usually lies behind an error of the YAML library. The
// first that fits is given.
var syntaxHints = []struct{ contains, hint string }{
	{"unknown anchor", `put text that begins with * in quotes`},
	{"expected alphabetic or numeric", `put text that begins with * or & in quotes`},
	{"cannot start any token", "indent with spaces; put text that begins with @, ` or % in quotes"},
	{"mapping values are not allowed", "indent as the line above; put text with a colon in quotes"},
	{"did not find expected", "check the indentation, the brackets and the quotes"},
	{"expected ':'", "write key: value, with a space after the colon"},
	{"UTF-8", "save the file as UTF-8 text"},
	{"control characters", "save the file as UTF-8 text"},
}

// syntax reports an error of the YAML library as a mistake.
func (c checker) syntax(err error, data []byte) {
	part := yamlError.FindStringSubmatch(err.Error())
	at := position{file: c.file}
	at.line, _ = strconv.Atoi(part[1])
	reason := part[2]
	if countedFromZero.MatchString(reason) {
		at.line++
	} else if name := unknownAnchor.FindStringSubmatch(reason); name != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+name[1]))
		at.line = 1 + bytes.Count(before, []byte("\n"))
	}
	var hint string
	for _, h := range syntaxHints {
		if strings.Contains(reason, h.contains) {
			hint = h.hint
			break
		}
	}
	c.addAt(at, "", "is not YAML: "+reason, hint)
}
