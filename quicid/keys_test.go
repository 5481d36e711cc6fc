package quicid

import (
	"bytes"
	"testing"
)

func TestEncryptedVectors(t *testing.T) {
	for _, v := range encryptedVectors(t) {
		keys := keysOf(t, v)
		id, c, ok := keys.Decode(v.cid)
		if id != v.id || ok != v.ok || ok && c != v.config {
			t.Errorf("Decode(%x) = %v, %d, %t, want %v, %d, %t", v.cid, id, c, ok, v.id, v.config, v.ok)
		}
		if id, ok := Decode(v.cid); ok {
			t.Errorf("%x is read as %v without its key", v.cid, id)
		}
		if !v.ok {
			continue
		}
		// The random octets are not in the file, but in the block.
		var block [16]byte
		keys.blocks[v.config].Decrypt(block[:], v.cid[1:])
		random := [RandomLen]byte(block[6:])
		var got [Len]byte
		if !keys.Encode(&got, v.config, v.id, random) || !bytes.Equal(got[:], v.cid) {
			t.Errorf("Encode(%d, %v) = %x, want %x", v.config, v.id, got, v.cid)
		}
	}
}

func TestKeysReadReadableOnes(t *testing.T) {
	withKey := keysOf(t, vector{config: 3, key: Key{1}})
	for _, keys := range []*Keys{{}, withKey} {
		for _, v := range readableVectors(t) {
			if id, c, ok := keys.Decode(v.cid); v.ok && (id != v.id || c != Readable || !ok) {
				t.Errorf("Decode(%x) = %v, %d, %t, want %v", v.cid, id, c, ok, v.id)
			}
		}
		var got [Len]byte
		if !keys.Encode(&got, Readable, ID{ServerID: 1}, [RandomLen]byte{9}) || got != [Len]byte{0x10, 0, 0, 0, 1, 0, 0, 9} {
			t.Errorf("a readable ID is %x", got)
		}
	}
}

// A rotation: the old key stays readable until it is taken away, and an ID of
// one key is not read with the other's.
func TestRotation(t *testing.T) {
	owner := ID{ServerID: 42, Slot: 7, Worker: 1}
	before := keysOf(t, vector{config: 1, key: Key{1}})
	both, err := NewKeys(map[Config]Key{1: {1}, 2: {2}})
	if err != nil {
		t.Fatal(err)
	}
	after := keysOf(t, vector{config: 2, key: Key{2}})

	var old, fresh [Len]byte
	if !before.Encode(&old, 1, owner, [RandomLen]byte{}) || !both.Encode(&fresh, 2, owner, [RandomLen]byte{}) {
		t.Fatal("an ID was not written")
	}
	for _, test := range []struct {
		name string
		keys *Keys
		cid  [Len]byte
		ok   bool
	}{
		{"the old one before", before, old, true},
		{"the old one meanwhile", both, old, true},
		{"the new one meanwhile", both, fresh, true},
		{"the new one after", after, fresh, true},
		{"the old one after", after, old, false},
		{"the new one before", before, fresh, false},
	} {
		id, _, ok := test.keys.Decode(test.cid[:])
		if ok != test.ok || ok && id != owner {
			t.Errorf("%s: %v, %t", test.name, id, ok)
		}
	}
	untouched := [Len]byte{1, 2, 3}
	if before.Encode(&untouched, 2, owner, [RandomLen]byte{}) || untouched != [Len]byte{1, 2, 3} {
		t.Errorf("an ID of a config without key was written: %x", untouched)
	}
	if before.Encode(&untouched, Unroutable, owner, [RandomLen]byte{}) {
		t.Error("an owner was written into an unroutable ID")
	}
}

func TestConfigsWithoutKeys(t *testing.T) {
	for _, c := range []Config{Readable, Unroutable, 200} {
		if _, err := NewKeys(map[Config]Key{c: {}}); err == nil {
			t.Errorf("config %d takes a key", c)
		}
	}
}

func TestUnroutable(t *testing.T) {
	var cid [Len]byte
	random := [Len - 1]byte{0, 0, 0, 1, Len - 2: 9}
	EncodeUnroutable(&cid, random)
	if c, ok := ConfigOf(cid[:]); c != Unroutable || !ok {
		t.Errorf("config %d, %t", c, ok)
	}
	if [Len - 1]byte(cid[1:]) != random {
		t.Errorf("%x does not end in %x: two connections would have one ID", cid, random)
	}
	keys, err := NewKeys(map[Config]Key{1: {}, 2: {}, 3: {}, 4: {}, 5: {}, 6: {}})
	if err != nil {
		t.Fatal(err)
	}
	if id, _, ok := keys.Decode(cid[:]); ok {
		t.Errorf("an unroutable ID names %v", id)
	}
}

func TestKeysAllocateNothing(t *testing.T) {
	keys := keysOf(t, vector{config: 1})
	id := ID{ServerID: 42, Slot: 7, Worker: 1}
	if n := testing.AllocsPerRun(1000, func() {
		var cid [Len]byte
		keys.Encode(&cid, 1, id, [RandomLen]byte{})
		if got, _, ok := keys.Decode(cid[:]); !ok || got != id {
			t.Errorf("decoded %v, %t", got, ok)
		}
	}); n >= 1 { // a collection may empty the pool once
		t.Errorf("%v allocations", n)
	}
}

func FuzzKeysDecode(f *testing.F) {
	for _, v := range append(readableVectors(f), encryptedVectors(f)...) {
		f.Add(v.cid)
	}
	keys, err := NewKeys(map[Config]Key{1: {}, 2: {2}, 5: {5}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, cid []byte) {
		id, c, ok := keys.Decode(cid)
		switch {
		case !ok && (id != ID{} || c != 0):
			t.Errorf("Decode(%x) = %v, %d though it is not ok", cid, id, c)
		case ok && (!keys.Has(c) || id.ServerID == 0 || len(cid) != Len):
			t.Errorf("Decode(%x) = %v, %d", cid, id, c)
		}
	})
}

func BenchmarkKeysDecode(b *testing.B) {
	keys, err := NewKeys(map[Config]Key{1: {}})
	if err != nil {
		b.Fatal(err)
	}
	var cid [Len]byte
	keys.Encode(&cid, 1, ID{ServerID: 42, Slot: 7, Worker: 1}, [RandomLen]byte{})
	b.ReportAllocs()
	for b.Loop() {
		keys.Decode(cid[:])
	}
}

func BenchmarkKeysEncode(b *testing.B) {
	keys, err := NewKeys(map[Config]Key{1: {}})
	if err != nil {
		b.Fatal(err)
	}
	var cid [Len]byte
	b.ReportAllocs()
	for b.Loop() {
		keys.Encode(&cid, 1, ID{ServerID: 42, Slot: 7, Worker: 1}, [RandomLen]byte{})
	}
}
