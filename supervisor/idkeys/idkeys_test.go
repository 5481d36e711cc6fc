package idkeys

import (
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/tests/need"
)

// lab is keys beside a table of the kernel's, and generations that live.
type lab struct {
	*Keys
	t      *testing.T
	kernel *cidkeys.Table
	living []uint64
}

func newLab(t *testing.T, living ...uint64) *lab {
	t.Helper()
	page, err := keys.New()
	if err != nil {
		t.Fatal(err)
	}
	table, err := cidkeys.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { page.Close(); table.Close() })
	l := &lab{t: t, kernel: table, living: living}
	l.Keys = New(Options{File: "cid.keys", Page: page, Log: slog.New(slog.DiscardHandler), Alive: func() []uint64 { return l.living }})
	return l
}

// has checks what the kernel reads and what is written.
func (l *lab) has(what string, encode quicid.Config, kernel map[quicid.Config]quicid.Key) {
	l.t.Helper()
	got, err := l.kernel.Keys()
	if err != nil {
		l.t.Fatal(err)
	}
	if !reflect.DeepEqual(got, kernel) {
		l.t.Errorf("%s: the kernel reads by %v, want %v", what, got, kernel)
	}
	ids := l.opts.Page.IDs()
	if ids.Config != encode || ids.Key != kernel[encode] {
		l.t.Errorf("%s: IDs are written under %+v, want config %d", what, ids, encode)
	}
	for i, key := range ids.Read {
		if key != kernel[quicid.Config(i+1)] {
			l.t.Errorf("%s: generations read config %d by %x, the kernel by %x", what, i+1, key, kernel[quicid.Config(i+1)])
		}
	}
}

type idKeys = map[quicid.Config]quicid.Key

func TestKeys(t *testing.T) {
	need.Root(t, "BPF maps")
	one, two, three := quicid.Key{1}, quicid.Key{2}, quicid.Key{3}
	want := func(encode quicid.Config, of idKeys) config.IDKeys { return config.IDKeys{Keys: of, Encode: encode} }
	apply := func(l *lab, k config.IDKeys) {
		t.Helper()
		if err := l.apply(k); err != nil {
			t.Fatal(err)
		}
	}

	l := newLab(t)
	apply(l, want(1, idKeys{1: one})) // before there is a listener
	if err := l.ReadBy(l.kernel); err != nil {
		t.Fatal(err)
	}
	l.has("the first listener", 1, idKeys{1: one})

	l.living = []uint64{7}
	apply(l, want(2, idKeys{1: one, 2: two}))
	l.has("two keys", 2, idKeys{1: one, 2: two})
	l.living = []uint64{7, 8}
	apply(l, want(2, idKeys{2: two}))
	l.has("one of them is taken out", 2, idKeys{1: one, 2: two})
	l.living = []uint64{7, 8, 9}
	l.GenerationEnded()
	l.has("nobody has ended", 2, idKeys{1: one, 2: two})
	if err := l.apply(want(1, idKeys{1: three, 2: two})); err == nil || !strings.Contains(err.Error(), "config 1 has another key") {
		t.Errorf("another key for a config in use: %v", err)
	}
	l.has("a change that is refused", 2, idKeys{1: one, 2: two})
	apply(l, want(2, idKeys{1: one, 2: two})) // back in the file
	l.living = []uint64{9}
	l.GenerationEnded()
	l.has("in the file again", 2, idKeys{1: one, 2: two})
	apply(l, want(2, idKeys{2: two}))
	l.living = []uint64{9, 10}
	l.GenerationEnded()
	l.has("its user lives", 2, idKeys{1: one, 2: two})
	l.living = []uint64{10}
	l.GenerationEnded()
	l.has("its user has ended", 2, idKeys{2: two})
	apply(l, want(0, idKeys{}))
	l.has("readable again", 0, idKeys{2: two})
	l.living = nil
	l.GenerationEnded()
	l.has("nobody is left", 0, idKeys{})
}

// A supervisor that adopts goes on with what the kernel has, whatever the page of the
// one before tells, and lets go of it when those that it found have ended.
func TestKeysAreAdopted(t *testing.T) {
	need.Root(t, "BPF maps")
	one, two := quicid.Key{1}, quicid.Key{2}
	l := newLab(t, 3, 4)
	if err := l.kernel.Set(1, one); err != nil {
		t.Fatal(err)
	}
	if err := l.ReadBy(l.kernel); err != nil {
		t.Fatal(err)
	}
	l.has("what was left", quicid.Readable, idKeys{1: one})
	if err := l.apply(config.IDKeys{Keys: idKeys{1: two}, Encode: 1}); err == nil {
		t.Error("the file's key takes the place of another that is in use")
	}
	if err := l.apply(config.IDKeys{Keys: idKeys{2: two}, Encode: 2}); err != nil {
		t.Fatal(err)
	}
	l.has("adopted", 2, idKeys{1: one, 2: two})
	l.living = []uint64{4, 5}
	l.GenerationEnded()
	l.has("one has ended", 2, idKeys{1: one, 2: two})
	l.living = []uint64{5}
	l.GenerationEnded()
	l.has("both have ended", 2, idKeys{2: two})

	// With nobody found, what the table has is of nobody.
	l = newLab(t)
	if err := l.kernel.Set(1, one); err != nil {
		t.Fatal(err)
	}
	if err := l.ReadBy(l.kernel); err != nil {
		t.Fatal(err)
	}
	l.has("nobody was found", 0, idKeys{})
}
