package quicid

import (
	"bytes"
	"testing"
)

func TestQUICLBVectors(t *testing.T) {
	for _, row := range rows(t, "quiclb.txt") {
		var l LB
		scan(t, row[:1], &l.Config)
		scan(t, row[2:3], &l.NonceLen)
		cid, want := octets(t, row[3]), octets(t, row[4])
		l.ServerIDLen = max(len(want), 3)
		if row[1] != "-" {
			key := Key(octets(t, row[1]))
			l.Key = &key
		}
		if err := l.Check(); err != nil {
			t.Fatal(err)
		}
		if got, ok := l.ServerID(nil, cid); !bytes.Equal(got, want) || ok != (len(want) > 0) {
			t.Errorf("server ID of %x: %x, %t, want %x", cid, got, ok, want)
		}
	}
}

// Ours are read by any balancer that keeps to QUIC-LB.
func TestOursAreQUICLB(t *testing.T) {
	for _, v := range append(readableVectors(t), encryptedVectors(t)...) {
		if !v.ok {
			continue
		}
		l := LB{Config: v.config, ServerIDLen: 6, NonceLen: RandomLen}
		if v.config != Readable {
			l.Key = &v.key
		}
		want := []byte{byte(v.id.ServerID >> 24), byte(v.id.ServerID >> 16), byte(v.id.ServerID >> 8), byte(v.id.ServerID), v.id.Slot, v.id.Worker}
		if got, ok := l.ServerID(nil, v.cid); !ok || !bytes.Equal(got, want) {
			t.Errorf("server ID of %x: %x, %t, want %x", v.cid, got, ok, want)
		}
	}
}

func TestLBMistakes(t *testing.T) {
	for name, l := range map[string]LB{
		"config 7":                       {Config: 7, ServerIDLen: 4, NonceLen: 4},
		"no server ID":                   {NonceLen: 4},
		"nonce too short":                {ServerIDLen: 4, NonceLen: 3},
		"longer than an ID":              {ServerIDLen: 15, NonceLen: 5},
		"encrypted, and not one block":   {ServerIDLen: 4, NonceLen: 4, Key: new(Key)},
		"encrypted, longer than a block": {ServerIDLen: 9, NonceLen: 8, Key: new(Key)},
	} {
		if l.Check() == nil {
			t.Errorf("%s: no mistake is found", name)
		}
		if id, ok := l.ServerID(nil, make([]byte, 20)); ok {
			t.Errorf("%s: reads %x", name, id)
		}
	}
}

func TestLBLimits(t *testing.T) {
	for _, l := range []LB{{ServerIDLen: 1, NonceLen: minNonceLen}, {ServerIDLen: 15, NonceLen: minNonceLen}} {
		cid := make([]byte, 1+l.ServerIDLen+l.NonceLen)
		if id, ok := l.ServerID(nil, cid); !ok || len(id) != l.ServerIDLen {
			t.Errorf("%+v: %x, %t, %v", l, id, ok, l.Check())
		}
		if id, ok := l.ServerID(nil, cid[1:]); ok {
			t.Errorf("%+v, an octet less: %x", l, id)
		}
	}
}

func TestKatranVectors(t *testing.T) {
	for _, row := range rows(t, "katran.txt") {
		cid := octets(t, row[0])
		var want Katran
		wantOK := scan(t, row[1:], &want.Version, &want.Host, &want.Worker, &want.Process)
		if got, ok := DecodeKatran(cid); got != want || ok != wantOK {
			t.Errorf("DecodeKatran(%x) = %+v, %t, want %+v, %t", cid, got, ok, want, wantOK)
		}
	}
}

func FuzzOthers(f *testing.F) {
	for _, row := range rows(f, "katran.txt") {
		f.Add(octets(f, row[0]))
	}
	for _, row := range rows(f, "quiclb.txt") {
		f.Add(octets(f, row[3]))
	}
	f.Fuzz(func(t *testing.T, cid []byte) {
		if k, ok := DecodeKatran(cid); ok {
			if k.Host == 0 || k.Process > 1 || k.Version == 0 {
				t.Errorf("DecodeKatran(%x) = %+v", cid, k)
			}
			if _, ours := Decode(cid); ours {
				t.Errorf("%x is both ours and Katran's", cid)
			}
		}
		for _, l := range []LB{{ServerIDLen: 4, NonceLen: 13}, {Config: 2, ServerIDLen: 8, NonceLen: 8, Key: new(Key)}} {
			if id, ok := l.ServerID(nil, cid); ok && len(id) != l.ServerIDLen {
				t.Errorf("server ID of %x: %x", cid, id)
			}
		}
	})
}
