package config

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A thousand VIPs with a thousand names each are a million values to a YAML parser,
// ten megabytes, and seconds until a reload has read them. So long lists of plain
// names are lifted out of the text before it is parsed, and put back behind it
// (decision 043). Whatever is not as expected has the file read as it was written:
// no mistake is found, worded or placed by what is here.

// longList is how many names a list has to have to be lifted.
const longList = 64

// end follows the number of a list, so that nothing behind it becomes a digit of it.
const end = "-"

// lifted is a file without its long lists of names.
type lifted struct {
	// text has a word of its own in place of each list: mark, the list's number, end.
	text  []byte
	mark  string
	lists [][]string
}

// lift takes the long lists of reals out of a file. It gives nil where there is none.
func lift(data []byte) *lifted {
	l := &lifted{mark: "lifted-list-"}
	if bytes.Contains(data, []byte(l.mark)) {
		return nil
	}
	s := scanner{data: data, names: map[string]string{}}
	kept := 0 // up to here the text is in l.text
	for s.find("reals") {
		s.skip('"')
		if !s.skip(':') {
			continue
		}
		s.spaces()
		begin := s.at
		list := s.list()
		if len(list) < longList {
			s.at = begin
			continue
		}
		l.text = append(l.text, data[kept:begin]...)
		if data[begin] == '\n' {
			l.text = append(l.text, ' ')
		}
		l.text = fmt.Append(l.text, l.mark, len(l.lists), end)
		l.lists = append(l.lists, list)
		kept = s.at
	}
	if kept == 0 {
		return nil
	}
	l.text = append(l.text, data[kept:]...)
	return l
}

// takeFrom takes the keys out of the tree whose values were lifted, and gives the
// number of the list of each VIP that had one. It is false where one stands anywhere
// else than as the reals of a VIP.
func (l *lifted) takeFrom(root *yaml.Node) (listOf map[int]int, ok bool) {
	listOf = map[int]int{}
	vips := valueOf(valueOf(root, "balancer"), "vips")
	if vips == nil || vips.Kind != yaml.SequenceNode {
		return nil, false
	}
	for i, vip := range vips.Content {
		at := indexOf(vip, "reals")
		if at < 0 {
			continue
		}
		key, value := vip.Content[at], vip.Content[at+1]
		number, found := strings.CutPrefix(value.Value, l.mark)
		if !found {
			continue
		}
		number, ended := strings.CutSuffix(number, end)
		n, err := strconv.Atoi(number)
		plain := value.Kind == yaml.ScalarNode && value.Style == 0 && value.Anchor == "" && key.ShortTag() == "!!str" && key.Anchor == ""
		if err != nil || !ended || n >= len(l.lists) || !plain {
			return nil, false
		}
		listOf[i] = n
		vip.Content = append(vip.Content[:at:at], vip.Content[at+2:]...)
		if indexOf(vip, "reals") >= 0 { // written twice
			return nil, false
		}
	}
	return listOf, !l.standsIn(root)
}

// standsIn reports whether a mark is left in a tree.
func (l *lifted) standsIn(n *yaml.Node) bool {
	if strings.Contains(n.Value, l.mark) || strings.Contains(n.Anchor, l.mark) || strings.Contains(n.Tag, l.mark) {
		return true
	}
	for _, below := range n.Content {
		if l.standsIn(below) {
			return true
		}
	}
	return false
}

// indexOf is where a mapping has a key; its value follows. -1: it has none.
func indexOf(n *yaml.Node, key string) int {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return i
			}
		}
	}
	return -1
}

// valueOf is the value of a key. nil: there is none.
func valueOf(n *yaml.Node, key string) *yaml.Node {
	if n == nil {
		return nil
	}
	if at := indexOf(n, key); at >= 0 {
		return n.Content[at+1]
	}
	return nil
}

// scanner reads lists of plain names.
type scanner struct {
	data  []byte
	at    int
	names map[string]string // each of them once
}

// find goes on behind the next place where a word stands.
func (s *scanner) find(word string) bool {
	next := bytes.Index(s.data[s.at:], []byte(word))
	if next < 0 {
		return false
	}
	s.at += next + len(word)
	return true
}

// skip goes on behind an octet, if it is there.
func (s *scanner) skip(octet byte) bool {
	if s.at == len(s.data) || s.data[s.at] != octet {
		return false
	}
	s.at++
	return true
}

func (s *scanner) spaces() (n int) {
	for ; s.skip(' '); n++ {
	}
	return n
}

// list reads a list in either of YAML's ways to write one, [a, b] or with a dash
// before each. It gives nil where it is anything else, and has then gone anywhere.
func (s *scanner) list() (list []string) {
	if s.skip('[') {
		for {
			s.blanks()
			name := s.name()
			if name == "" {
				return nil
			}
			list = append(list, name)
			s.blanks()
			if s.skip(']') {
				return list
			}
			if !s.skip(',') {
				return nil
			}
		}
	}
	indent := -1
	for s.skip('\n') {
		line := s.at
		if n := s.spaces(); indent < 0 {
			indent = n
		} else if n != indent {
			s.at = line - 1
			return list
		}
		if !s.skip('-') || !s.skip(' ') {
			s.at = line - 1
			return list
		}
		name := s.name()
		s.spaces()
		if name == "" || s.at < len(s.data) && s.data[s.at] != '\n' {
			return nil
		}
		list = append(list, name)
	}
	return list
}

// blanks goes on behind spaces and ends of lines.
func (s *scanner) blanks() {
	for s.spaces() > 0 || s.skip('\n') {
	}
}

// name reads a name in quotes or without. It gives "" where there is none, or what is
// no text to YAML without quotes.
func (s *scanner) name() string {
	quoted := s.skip('"')
	from := s.at
	for s.at < len(s.data) && inName[s.data[s.at]] {
		s.at++
	}
	word := s.data[from:s.at]
	if len(word) == 0 || quoted && !s.skip('"') {
		return ""
	}
	name, known := s.names[string(word)]
	if !known {
		name = string(word)
		s.names[name] = name
	}
	if !quoted && (name[0] < 'a' || name[0] > 'z' || name == "true" || name == "false" || name == "null") {
		return ""
	}
	return name
}

// inName are the octets of a name: [namePattern].
var inName = func() (in [256]bool) {
	for _, octet := range []byte("abcdefghijklmnopqrstuvwxyz0123456789._-") {
		in[octet] = true
	}
	return in
}()
