package quic

import (
	"crypto/rand"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/idkeys"
	"github.com/baton-mesh/baton/tests/node"
)

// keyFile is a file of keys of connection IDs that is written anew.
type keyFile struct {
	path string
	keys map[string]string // by config
}

func newKeyFile(t *testing.T, lines ...string) *keyFile {
	t.Helper()
	f := &keyFile{filepath.Join(t.TempDir(), "cid.keys"), map[string]string{}}
	f.write(t, lines...)
	return f
}

// write replaces the file in one step. A line is a config, alone or with what stands
// behind its key.
func (f *keyFile) write(t *testing.T, lines ...string) {
	t.Helper()
	var text strings.Builder
	for _, line := range lines {
		config, mark, _ := strings.Cut(line, " ")
		if f.keys[config] == "" {
			key := make([]byte, quicid.KeyLen)
			rand.Read(key)
			f.keys[config] = hex.EncodeToString(key)
		}
		text.WriteString(strings.TrimSpace(config+" "+f.keys[config]+" "+mark) + "\n")
	}
	f.replace(t, text.String(), 0o600)
}

func (f *keyFile) replace(t *testing.T, text string, mode os.FileMode) {
	t.Helper()
	next := f.path + ".next"
	if err := os.WriteFile(next, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, f.path); err != nil {
		t.Fatal(err)
	}
}

// waitIDs waits until the node's connection IDs are as the test wants.
func (s *site) waitIDs(t *testing.T, what string, as func(*idkeys.Status) bool) {
	t.Helper()
	var last *idkeys.Status
	node.Eventually(t, what, func() bool {
		status, err := admin.Dial(s.Socket()).Status(t.Context())
		last = status.ConnectionIDs
		return err == nil && last != nil && as(last)
	})
	t.Logf("%s: %+v", what, *last)
}

func writes(config int) func(*idkeys.Status) bool {
	return func(st *idkeys.Status) bool { return st.Encode == config }
}

func retires(configs ...int) func(*idkeys.Status) bool {
	return func(st *idkeys.Status) bool {
		var retiring []int
		for _, r := range st.Retiring {
			retiring = append(retiring, r.Config)
		}
		return slices.Equal(retiring, configs)
	}
}

// TestRotation rotates the keys of connection IDs again and again under load, over
// releases and the death of the supervisor: connections that were made before, during
// and after stay with their generation, wherever their clients move to. Keys that were
// taken out go when the generations that wrote under them have ended.
func TestRotation(t *testing.T) {
	keys := newKeyFile(t, "1")
	s := startSite(t, siteSettings{idKeys: keys.path})
	l := s.load(t)
	for range 2 {
		l.kept()
	}
	l.fresh()
	l.moving()
	l.datagrams()
	var all []*upload
	begin := func(generation string, config int32) {
		t.Helper()
		u, err := l.upload()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(u.close)
		all = append(all, u)
		if u.generation != generation {
			t.Errorf("generation %s answers, want %s", u.generation, generation)
		}
		node.Eventually(t, "a packet by a connection ID of the server's", func() bool { return u.send() == nil && u.relay.config.Load() == config })
	}
	moveAll := func() {
		t.Helper()
		for _, u := range all {
			u.relay.rebind()
			if err := u.send(); err != nil {
				t.Errorf("generation %s: %v", u.generation, err)
			}
		}
	}
	begin("1", 0) // a key is known, and not in use yet
	keys.write(t, "1 encode")
	s.waitIDs(t, "the first key is in use", writes(1))
	begin("1", 1)
	moveAll()

	keys.write(t, "1", "2 encode")
	s.waitIDs(t, "a first rotation", writes(2))
	begin("1", 2)
	moveAll()
	s.release(t, "release")
	begin("2", 2)
	keys.write(t, "2 encode")
	s.waitIDs(t, "the first key is taken out", retires(1))
	moveAll()

	s.Kill()
	moveAll()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitIDs(t, "adopted", retires(1))
	keys.write(t, "2", "3 encode")
	s.waitIDs(t, "a second rotation", writes(3))
	begin("2", 2) // it has the page of a supervisor that is dead
	s.release(t, "release after the adoption")
	begin("3", 3)
	keys.write(t, "3 encode")
	s.waitIDs(t, "the second key is taken out", retires(1, 2))
	moveAll()
	time.Sleep(300 * time.Millisecond) // of load
	moveAll()

	for _, u := range all {
		if err := u.finish(); err != nil {
			t.Errorf("an upload to generation %s: %v", u.generation, err)
		}
		u.end()
	}
	l.wantNoneFailed()
	s.release(t, "a last release") // of which all clients have gone
	s.waitIDs(t, "the old keys are gone", func(st *idkeys.Status) bool {
		return len(st.Retiring) == 0 && slices.Equal(st.Read, []int{3})
	})
}

// TestRotationWithoutTheKernel is the control: what generations write under a key that
// the kernel does not have reaches nobody.
func TestRotationWithoutTheKernel(t *testing.T) {
	keys := newKeyFile(t, "1 encode")
	s := startSite(t, siteSettings{idKeys: keys.path, drain: time.Second})
	table, err := cidkeys.Pinned(filepath.Join(node.Pins(t, filepath.Join(s.Dir, "run")), "v2", cidkeys.MapName))
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	l := s.load(t)
	c := l.client(l.secure)
	defer c.end()
	if _, err := c.do("GET", "/small", nil); err != nil {
		t.Fatal(err)
	}
	if err := table.Clear(1); err != nil {
		t.Fatal(err)
	}
	if got, err := c.doFor(2*time.Second, "GET", "/small", nil); err == nil {
		t.Errorf("%q: answered without a key", got)
	}
}

// metric waits until the node's page of metrics has a line.
func (s *site) metric(t *testing.T, line string) {
	t.Helper()
	node.Eventually(t, line, func() bool {
		res, err := http.Get("http://" + s.Admin() + "/metrics")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		page, err := io.ReadAll(res.Body)
		return err == nil && strings.Contains(string(page), "\n"+line+"\n")
	})
}

// TestKeyFileIsRefused: what is wrong with the file is said, and nothing changes.
func TestKeyFileIsRefused(t *testing.T) {
	keys := newKeyFile(t, "1 encode")
	s := startSite(t, siteSettings{idKeys: keys.path})
	l := s.load(t)
	l.kept()
	l.fresh()
	good := "2 " + strings.Repeat("5a", quicid.KeyLen) + " encode\n"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(says string) {
		t.Helper()
		s.waitIDs(t, says, func(st *idkeys.Status) bool {
			return strings.Contains(st.Problem, says) && st.Encode == 1 && slices.Equal(st.Read, []int{1})
		})
	}
	same, err := os.ReadFile(keys.path)
	must(err)
	accepted := func() {
		t.Helper()
		keys.replace(t, string(same), 0o600)
		s.waitIDs(t, "the file as it was", func(st *idkeys.Status) bool { return st.Problem == "" })
	}

	must(os.Remove(keys.path))
	refused("no such file")
	s.metric(t, "baton_connection_id_file_refused 1")
	accepted()
	s.metric(t, "baton_connection_id_file_refused 0")
	must(os.Truncate(keys.path, 20))
	refused("digits")
	must(os.Truncate(keys.path, 0))
	refused("holds no key")
	accepted()
	must(os.Chmod(keys.path, 0o644)) // its contents are as before
	refused("is open to every user of this host")
	must(os.Chmod(keys.path, 0o600))
	accepted()
	must(os.Rename(filepath.Dir(keys.path), filepath.Dir(keys.path)+"-away"))
	refused("no such file")
	must(os.Rename(filepath.Dir(keys.path)+"-away", filepath.Dir(keys.path)))
	s.waitIDs(t, "its directory is back", func(st *idkeys.Status) bool { return st.Problem == "" })

	for _, wrong := range []struct {
		text, says string
		mode       os.FileMode
	}{
		{"1 " + strings.Repeat("5a", quicid.KeyLen) + " encode\n", "config 1 has another key than before", 0o600},
		{good + "7 00", "there is no config 7", 0o600},
		{good + good, "config 2 has a key already (see line 1)", 0o600},
		{good, "is open to every user of this host", 0o644},
	} {
		keys.replace(t, wrong.text, wrong.mode)
		refused(wrong.says)
	}
	if result, err := s.Release(t.Context(), s.file); err != nil || result.Outcome != "refused" || !strings.Contains(result.Reason, "open to every user") {
		t.Errorf("a release with such a file: %+v, %v", result, err)
	}
	keys.replace(t, good, 0o600)
	s.waitIDs(t, "a good file again", writes(2))
	l.wantNoneFailed()
}
