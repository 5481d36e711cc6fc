package quicid

import (
	"bytes"
	"testing"
)

func TestVectors(t *testing.T) {
	for _, v := range readableVectors(t) {
		id, ok := Decode(v.cid)
		if id != v.id || ok != v.ok {
			t.Errorf("Decode(%x) = %v, %t, want %v, %t", v.cid, id, ok, v.id, v.ok)
		}
		if !v.ok {
			continue
		}
		var got [Len]byte
		Encode(&got, v.id, [RandomLen]byte(v.cid[7:]))
		if !bytes.Equal(got[:], v.cid) {
			t.Errorf("Encode(%v) = %x, want %x", v.id, got, v.cid)
		}
	}
}

func TestConfigOf(t *testing.T) {
	for _, test := range []struct {
		first byte
		want  Config
		ok    bool
	}{
		{0x10, Readable, true},
		{0x11, Readable, false},
		{0x30, 1, true},
		{0xd0, 6, true},
		{0xcf, 6, false},
		{0xe0, Unroutable, true},
		{0xff, Unroutable, true},
	} {
		cid := [Len]byte{test.first}
		if c, ok := ConfigOf(cid[:]); ok != test.ok || ok && c != test.want {
			t.Errorf("ConfigOf(%#x…) = %d, %t, want %d, %t", test.first, c, ok, test.want, test.ok)
		}
		if c, ok := ConfigOf(cid[:Len-1]); ok {
			t.Errorf("ConfigOf of 16 octets = %d, want none", c)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	id := ID{ServerID: 42, Slot: 7, Worker: 1}
	if n := testing.AllocsPerRun(100, func() {
		var cid [Len]byte
		Encode(&cid, id, [RandomLen]byte{})
		if got, ok := Decode(cid[:]); !ok || got != id {
			t.Errorf("decoded %v, %t", got, ok)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range readableVectors(f) {
		f.Add(v.cid)
	}
	f.Fuzz(func(t *testing.T, cid []byte) {
		id, ok := Decode(cid)
		if !ok {
			if id != (ID{}) {
				t.Errorf("Decode(%x) = %v though it is not ok", cid, id)
			}
			return
		}
		// What decodes is what Encode makes, so a router may compare bytes.
		var again [Len]byte
		Encode(&again, id, [RandomLen]byte(cid[7:]))
		if !bytes.Equal(again[:], cid) {
			t.Errorf("%x decodes to %v, which encodes to %x", cid, id, again)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var cid [Len]byte
	Encode(&cid, ID{ServerID: 42, Slot: 7, Worker: 1}, [RandomLen]byte{})
	for b.Loop() {
		Decode(cid[:])
	}
}
