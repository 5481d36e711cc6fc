package proxy

import (
	"encoding/hex"
	"strings"
	"testing"
)

// Whatever a client sends as traceparent: what is taken of it stands in it, and what
// is made of it is taken again.
func FuzzTraceparent(f *testing.F) {
	const whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, seed := range []string{whole, whole + "-more", "ff" + whole[2:], whole[:54], strings.ToUpper(whole), ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, field string) {
		c := parseTraceparent(field)
		if c == (traceContext{}) {
			return
		}
		if !strings.HasPrefix(field[2:], "-"+hex.EncodeToString(c.traceID[:])+"-"+hex.EncodeToString(c.parentID[:])+"-") {
			t.Fatalf("%q: %+v", field, c)
		}
		span := [8]byte{1}
		again := parseTraceparent(c.child(span))
		want := c
		want.parentID = span
		if again != want {
			t.Fatalf("%q: %+v, its child %+v", field, c, again)
		}
	})
}
