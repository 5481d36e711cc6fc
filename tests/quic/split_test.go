package quic

import (
	"net/http"
	"testing"
)

// TestListenersMoveAlone releases one listener after the other, and then all, under
// clients of HTTP/3 and UDP: a new connection goes to who has its listener, and an
// old one stays where it is.
func TestListenersMoveAlone(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.fresh()
	l.kept()
	l.datagrams()
	for _, step := range []struct {
		of   []string // none: all
		want string   // who answers a new connection of HTTP/3
	}{
		{[]string{"dgram"}, "1"}, {[]string{"web"}, "3"}, {[]string{"raw"}, "3"}, {nil, "5"},
	} {
		result, err := s.ReleaseOf(t.Context(), s.file, "50%,100%", step.of...)
		if err != nil || result.ExitCode != 0 {
			t.Fatalf("%v: %+v, %v", step.of, result, err)
		}
		c := l.client(l.secure)
		_, err = c.do(http.MethodGet, "/small", nil)
		if got := c.owners[c.last.Load()]; err != nil || got != step.want {
			t.Errorf("after the release of %v generation %q has a new connection, %v; want %s", step.of, got, err, step.want)
		}
		c.end()
	}
	done, failed := l.finish()
	for kind, n := range done {
		if n == 0 {
			t.Errorf("%s: nothing was done", kind)
		}
	}
	for _, text := range failed {
		t.Error(text)
	}
}
