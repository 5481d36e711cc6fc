package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/quicid"
)

const (
	keyOfOnes = "11111111111111111111111111111111"
	keyOfTwos = "22222222222222222222222222222222"
)

func TestIDKeys(t *testing.T) {
	keys, err := ParseIDKeys("cid.keys", []byte("# the fleet's\n\n1 "+keyOfOnes+"  # until Friday\n  6\t"+strings.ToUpper(keyOfTwos)+" encode\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(keys.Keys) != 2 || keys.Encode != 6 || keys.Keys[1][0] != 0x11 || keys.Keys[6][15] != 0x22 {
		t.Errorf("got %v", keys)
	}
	keys, err = ParseIDKeys("cid.keys", []byte("1 "+keyOfOnes))
	if err != nil || keys.Encode != quicid.Readable {
		t.Errorf("no mark: %v, %v", keys, err)
	}
}

func TestIDKeyMistakes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "cid.keys: holds no key (leave connection_ids.key_file out, if none is wanted)"},
		{"# none\n", "cid.keys: holds no key (leave connection_ids.key_file out, if none is wanted)"},
		{"one " + keyOfOnes, `cid.keys:1: does not begin with the number of a config (write it as "1 KEY" or "1 KEY encode")`},
		{"0 " + keyOfOnes, "cid.keys:1: config 0 is the readable form, which has no key (write 1 to 6)"},
		{"\n7 " + keyOfOnes, "cid.keys:2: there is no config 7 (write 1 to 6)"},
		{"300 " + keyOfOnes, `cid.keys:1: does not begin with the number of a config (write it as "1 KEY" or "1 KEY encode")`},
		{"1 " + keyOfOnes + "\n1 " + keyOfTwos, "cid.keys:2: config 1 has a key already (see line 1)"},
		{"2", "cid.keys:1: has no key (write 32 hexadecimal digits: openssl rand -hex 16 makes some)"},
		{"2 " + keyOfOnes[1:], "cid.keys:1: the key has 31 digits (write 32 hexadecimal digits: openssl rand -hex 16 makes some)"},
		{"2 " + keyOfOnes + "11", "cid.keys:1: the key has 34 digits (write 32 hexadecimal digits: openssl rand -hex 16 makes some)"},
		{"2 x" + keyOfOnes[1:], "cid.keys:1: the key is not hexadecimal (write 0 to 9 and a to f)"},
		{"2 " + strings.Repeat("0", 32), "cid.keys:1: the key is all zeros (openssl rand -hex 16 makes one that nobody guesses)"},
		{"1 " + keyOfOnes + "\n2 " + keyOfOnes, "cid.keys:2: config 1 has the same key (make one of its own: openssl rand -hex 16)"},
		{"1 " + keyOfOnes + " encodes", "cid.keys:1: has something behind the key that is not known (write encode, or nothing)"},
		{"1 " + keyOfOnes + " encode please", "cid.keys:1: has something behind the key that is not known (write encode, or nothing)"},
		{"1 " + keyOfOnes + " encode\n2 " + keyOfTwos + " encode", "cid.keys:2: a second key is marked with encode (see line 1)"},
		{strings.Repeat("#\n", maxKeyFile), "cid.keys: has more than 64 KiB (write at most six keys)"},
	} {
		_, err := ParseIDKeys("cid.keys", []byte(c.text))
		if err == nil || err.Error() != c.want {
			t.Errorf("%.40q:\n got  %v\n want %s", c.text, err, c.want)
		}
	}
	// All of them at once, and no octet of a key.
	_, err := ParseIDKeys("cid.keys", []byte("7 "+keyOfOnes+"\n1 "+keyOfTwos+"3\n"))
	var mistakes Mistakes
	if !errors.As(err, &mistakes) || len(mistakes) != 2 {
		t.Errorf("two mistakes: %v", err)
	} else if text := err.Error(); strings.Contains(text, "1111") || strings.Contains(text, "2222") {
		t.Errorf("a key is shown: %s", text)
	}
}

// A configuration is judged with the file of keys that it names.
func TestIDKeyFile(t *testing.T) {
	dir := t.TempDir()
	file, conf := filepath.Join(dir, "cid.keys"), filepath.Join(dir, "baton.yaml")
	load := func() (*Config, error) {
		text := strings.Replace(string(Example()), `key_file: ""`, "key_file: cid.keys", 1)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Parse(conf, []byte(text), nil)
	}
	write := func(text string, mode os.FileMode) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, want string) {
		t.Helper()
		if _, err := load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	refused("missing", `connection_ids.key_file: `+show(file)+" cannot be read: no such file or directory")
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("a directory", "cannot be read: no regular file")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	write("1 "+keyOfOnes+" encode", 0o644)
	refused("world-readable", "is open to every user of this host (mode 0644)")
	write("\n8 "+keyOfOnes, 0o600)
	refused("a mistake in it", file+":2: there is no config 8 (write 1 to 6)")
	write("1 "+keyOfOnes, 0o640)
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if c.ConnectionIDs.KeyFile != file {
		t.Errorf("the path is %s", c.ConnectionIDs.KeyFile)
	}
	if w := c.idKeyWarnings(); len(w) != 1 || !strings.Contains(w[0], "stay readable") {
		t.Errorf("no key is marked: %q", w)
	}
	// No generation is to read it.
	handed, err := c.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Receive("memfd", handed); err != nil || got.ConnectionIDs != (ConnectionIDs{}) || strings.Contains(string(handed), "cid.keys") {
		t.Errorf("handed over: %+v, %v", got, err)
	}
}

func FuzzIDKeys(f *testing.F) {
	f.Add([]byte("1 " + keyOfOnes + " encode\n2 " + keyOfTwos))
	f.Add([]byte("7 x # y\n\x00\n1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := ParseIDKeys("f", text)
		if err != nil {
			var mistakes Mistakes
			if !errors.As(err, &mistakes) || len(mistakes) == 0 {
				t.Fatalf("%v tells no mistake", err)
			}
			return
		}
		if _, ok := keys.Keys[keys.Encode]; len(keys.Keys) == 0 || !ok && keys.Encode != quicid.Readable {
			t.Fatalf("accepted: %v", keys)
		}
		if _, err := quicid.NewKeys(keys.Keys); err != nil {
			t.Fatal(err)
		}
	})
}
