package quicid

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
)

// rows is the fields of each line of a file of vectors.
func rows(tb testing.TB, name string) [][]string {
	tb.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	var all [][]string
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 0 && fields[0] != "#" {
			all = append(all, fields)
		}
	}
	if len(all) == 0 {
		tb.Fatalf("%s has no vector", name)
	}
	return all
}

func octets(tb testing.TB, field string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Trim(field, `"-`))
	if err != nil {
		tb.Fatalf("%s: %v", field, err)
	}
	return b
}

// scan reads fields into values; a lone "-" stands for none.
func scan(tb testing.TB, fields []string, values ...any) (ok bool) {
	tb.Helper()
	if fields[0] == "-" {
		return false
	}
	if _, err := fmt.Sscan(strings.Join(fields, " "), values...); err != nil {
		tb.Fatalf("%v: %v", fields, err)
	}
	return true
}

// vector is one connection ID and whom it names.
type vector struct {
	cid    []byte
	config Config
	key    Key // of an encrypted one
	id     ID
	ok     bool
}

func readableVectors(tb testing.TB) (all []vector) {
	for _, row := range rows(tb, "readable.txt") {
		v := vector{cid: octets(tb, row[0])}
		v.ok = scan(tb, row[1:], &v.id.ServerID, &v.id.Slot, &v.id.Worker)
		all = append(all, v)
	}
	return all
}

func encryptedVectors(tb testing.TB) (all []vector) {
	for _, row := range rows(tb, "encrypted.txt") {
		v := vector{key: Key(octets(tb, row[1])), cid: octets(tb, row[2])}
		scan(tb, row[:1], &v.config)
		v.ok = scan(tb, row[3:], &v.id.ServerID, &v.id.Slot, &v.id.Worker)
		all = append(all, v)
	}
	return all
}

func keysOf(tb testing.TB, v vector) *Keys {
	tb.Helper()
	k, err := NewKeys(map[Config]Key{v.config: v.key})
	if err != nil {
		tb.Fatal(err)
	}
	return k
}
