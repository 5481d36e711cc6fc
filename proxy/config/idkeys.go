package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/baton-mesh/baton/quicid"
)

// maxKeyFile bounds the file of keys, in octets: six keys, and room for comments.
const maxKeyFile = 64 << 10

// IDKeys are the keys of encrypted connection IDs.
type IDKeys struct {
	// Keys are those that IDs are read by.
	Keys map[quicid.Config]quicid.Key
	// Encode is the one that they are written under; [quicid.Readable] if none is marked.
	Encode quicid.Config
}

// LoadIDKeys reads a file of keys. The error is [Mistakes]; none of them shows any
// octet of a key.
func LoadIDKeys(file string) (IDKeys, error) {
	r, whole := newReport(file), position{file: file}
	text, mode, err := readSecret(file)
	switch {
	case err != nil:
		r.addAt(whole, "", "cannot be read: "+cause(err).Error(), "")
	case mode&0o007 != 0:
		r.addAt(whole, "", fmt.Sprintf("is open to every user of this host (mode %#o)", mode), "chmod o-rwx, and replace its keys if anybody else was here")
	}
	if len(r.mistakes) > 0 {
		return IDKeys{}, r.mistakes
	}
	return ParseIDKeys(file, text)
}

// ParseIDKeys reads the text of a file of keys, whose name stands in mistakes. Each
// line is a config, its key in hexadecimal digits, and encode behind the one key that
// IDs are to be written under. Empty lines, and what follows a #, say nothing.
func ParseIDKeys(name string, text []byte) (IDKeys, error) {
	r, whole := newReport(name), position{file: name}
	keys := IDKeys{Keys: map[quicid.Config]quicid.Key{}}
	lines := map[quicid.Config]int{}
	marked := 0 // the line of the key that is marked
	if len(text) > maxKeyFile {
		r.addAt(whole, "", "has more than 64 KiB", "write at most six keys")
		return IDKeys{}, r.mistakes
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		wrong := func(reason, hint string) { r.addAt(position{name, n, 1}, "", reason, hint) }
		number, err := strconv.ParseUint(words[0], 10, 8)
		config := quicid.Config(number)
		switch {
		case err != nil:
			wrong("does not begin with the number of a config", `write it as "1 KEY" or "1 KEY encode"`)
			continue
		case config == quicid.Readable:
			wrong("config 0 is the readable form, which has no key", "write 1 to 6")
			continue
		case config >= quicid.Unroutable:
			wrong(fmt.Sprintf("there is no config %d", number), "write 1 to 6")
			continue
		case lines[config] != 0:
			wrong(fmt.Sprintf("config %d has a key already", number), fmt.Sprintf("see line %d", lines[config]))
			continue
		case len(words) == 1:
			wrong("has no key", "write 32 hexadecimal digits: openssl rand -hex 16 makes some")
			continue
		}
		lines[config] = n
		octets, err := hex.DecodeString(words[1])
		key := quicid.Key{}
		copy(key[:], octets)
		switch same := sameKey(keys.Keys, key); {
		case len(words[1]) != 2*quicid.KeyLen:
			wrong(fmt.Sprintf("the key has %d digits", len(words[1])), "write 32 hexadecimal digits: openssl rand -hex 16 makes some")
		case err != nil:
			wrong("the key is not hexadecimal", "write 0 to 9 and a to f")
		case key == quicid.Key{}:
			wrong("the key is all zeros", "openssl rand -hex 16 makes one that nobody guesses")
		case same != quicid.Readable:
			wrong(fmt.Sprintf("config %d has the same key", same), "make one of its own: openssl rand -hex 16")
		}
		keys.Keys[config] = key
		switch {
		case len(words) == 2:
		case len(words) > 3 || words[2] != "encode":
			wrong("has something behind the key that is not known", "write encode, or nothing")
		case marked != 0:
			wrong("a second key is marked with encode", fmt.Sprintf("see line %d", marked))
		default:
			keys.Encode, marked = config, n
		}
	}
	if len(lines) == 0 && len(r.mistakes) == 0 {
		r.addAt(whole, "", "holds no key", "leave connection_ids.key_file out, if none is wanted")
	}
	if len(r.mistakes) > 0 {
		return IDKeys{}, r.mistakes
	}
	return keys, nil
}

// sameKey is the config that has this key already; [quicid.Readable]: none.
func sameKey(keys map[quicid.Config]quicid.Key, key quicid.Key) quicid.Config {
	for config, other := range keys {
		if other == key {
			return config
		}
	}
	return quicid.Readable
}

// readSecret reads a file, and says who may. What is judged is what is read.
func readSecret(file string) ([]byte, fs.FileMode, error) {
	// Nothing but a regular file: opening a pipe would wait for a writer.
	if info, err := os.Stat(file); err != nil {
		return nil, 0, err
	} else if !info.Mode().IsRegular() {
		return nil, 0, errors.New("no regular file")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	return text, info.Mode().Perm(), err
}

// readIDKeys judges the keys of connection IDs, and makes the path of their file
// absolute. The keys themselves are no part of a configuration: they change without it.
func readIDKeys(r *report, c *Config, dir string) {
	const path = "connection_ids.key_file"
	if c.ConnectionIDs.KeyFile == "" {
		return
	}
	c.ConnectionIDs.KeyFile = absolute(dir, c.ConnectionIDs.KeyFile)
	_, err := LoadIDKeys(c.ConnectionIDs.KeyFile)
	var mistakes Mistakes
	errors.As(err, &mistakes)
	for _, m := range mistakes {
		if m.Line == 0 {
			r.add(path, show(c.ConnectionIDs.KeyFile)+" "+m.Reason, m.Hint)
		} else {
			r.mistakes = append(r.mistakes, m)
		}
	}
}

// idKeyWarnings says what is no mistake in a file of keys, but hardly meant for long.
func (c *Config) idKeyWarnings() []string {
	if c.ConnectionIDs.KeyFile == "" {
		return nil
	}
	if keys, err := LoadIDKeys(c.ConnectionIDs.KeyFile); err == nil && keys.Encode == quicid.Readable {
		return []string{"connection_ids.key_file: no key is marked with encode: connection IDs stay readable"}
	}
	return nil
}
