package cidkeys

//go:generate go tool bpf2go -target bpfel -type answer -output-suffix _test probe probe_test.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"bufio"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/tests/need"
)

func TestMain(m *testing.M) {
	need.RootForAll("running BPF programs")
	os.Exit(m.Run())
}

// probe runs the headers on a datagram.
type probe struct {
	objs probeObjects
	keys *Table
}

func newProbe(tb testing.TB) *probe {
	tb.Helper()
	p := new(probe)
	var err error
	if p.keys, err = New(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.keys.Close() })
	err = loadProbeObjects(&p.objs, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{MapName: p.keys.Map()}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.objs.Close() })
	return p
}

func (p *probe) read(tb testing.TB, datagram []byte) probeAnswer {
	tb.Helper()
	if err := p.objs.Answers.Put(uint32(0), probeAnswer{}); err != nil {
		tb.Fatal(err)
	}
	verdict, err := p.objs.Probe.Run(&ebpf.RunOptions{Data: datagram})
	if err != nil {
		tb.Fatal(err)
	}
	if verdict != 2 { // XDP_PASS
		tb.Fatalf("the probe ends with %d on %x", verdict, datagram)
	}
	var a probeAnswer
	if err := p.objs.Answers.Lookup(uint32(0), &a); err != nil {
		tb.Fatal(err)
	}
	return a
}

const (
	formNone = iota
	formLong
	formShort
)

// padded makes a datagram as long as test_run wants it at least.
func padded(parts ...[]byte) []byte {
	var d []byte
	for _, p := range parts {
		d = append(d, p...)
	}
	return append(d, make([]byte, 64)...)
}

// long is the start of a packet with a long header.
func long(first byte, version uint32, dcid []byte) []byte {
	head := binary.BigEndian.AppendUint32([]byte{first}, version)
	return append(append(head, byte(len(dcid))), dcid...)
}

// vectorRows are the lines of one of quicid's files of vectors.
func vectorRows(tb testing.TB, name string) (all [][]string) {
	tb.Helper()
	f, err := os.Open("../../quicid/testdata/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 0 && fields[0] != "#" {
			all = append(all, fields)
		}
	}
	return all
}

func octets(tb testing.TB, field string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Trim(field, `"`))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// What quicid reads the programs read, and nothing else: in a short header and in
// a long one.
func TestVectors(t *testing.T) {
	p := newProbe(t)
	check := func(cid []byte, owner []string) {
		t.Helper()
		var want quicid.ID
		if owner[0] != "-" {
			if _, err := fmt.Sscan(strings.Join(owner, " "), &want.ServerID, &want.Slot, &want.Worker); err != nil {
				t.Fatal(err)
			}
		}
		headers := [][]byte{long(0xc3, 1, cid)}
		if len(cid) == quicid.Len { // a short header does not tell its length
			headers = append(headers, append([]byte{0x41}, cid...))
		}
		for _, h := range headers {
			a := p.read(t, padded(h))
			got := quicid.ID{ServerID: a.ServerId, Slot: a.Slot, Worker: a.Worker}
			if owned := a.Owned != 0; owned != (owner[0] != "-") || owned && got != want {
				t.Errorf("owner of %x: %v, %t, want %v", h, got, owned, want)
			}
		}
	}
	for _, row := range vectorRows(t, "readable.txt") {
		check(octets(t, row[0]), row[1:])
	}
	for _, row := range vectorRows(t, "encrypted.txt") {
		c := quicid.Config(row[0][0] - '0')
		if err := p.keys.Set(c, quicid.Key(octets(t, row[1]))); err != nil {
			t.Fatal(err)
		}
		check(octets(t, row[2]), row[3:])
		if err := p.keys.Clear(c); err != nil {
			t.Fatal(err)
		}
		check(octets(t, row[2]), []string{"-"})
	}
}

// The decryption agrees with Go's over random keys and blocks.
func TestDecryption(t *testing.T) {
	p := newProbe(t)
	random := rand.NewChaCha8([32]byte{1})
	for range 500 {
		var key quicid.Key
		var block [aes.BlockSize]byte
		random.Read(key[:])
		random.Read(block[:])
		block[0] |= 1 // a server_id that is not 0
		cipher, err := aes.NewCipher(key[:])
		if err != nil {
			t.Fatal(err)
		}
		cid := make([]byte, quicid.Len)
		cid[0] = 4<<5 | quicid.Len - 1
		cipher.Encrypt(cid[1:], block[:])
		if err := p.keys.Set(4, key); err != nil {
			t.Fatal(err)
		}
		a := p.read(t, padded([]byte{0x40}, cid))
		if a.ServerId != binary.BigEndian.Uint32(block[:]) || a.Slot != block[4] || a.Worker != block[5] {
			t.Fatalf("key %x, block %x: %+v", key, block, a)
		}
	}
}

// Headers of every version, cut off everywhere, with every length of ID.
func TestForms(t *testing.T) {
	p := newProbe(t)
	cid := make([]byte, quicid.Len)
	(*[quicid.Len]byte)(cid)[0] = 0x10
	cid[4] = 9
	for name, test := range map[string]struct {
		datagram []byte
		form     uint32
		cidLen   uint32
		server   uint32
	}{
		"version 1 Initial":               {padded(long(0xc0, 1, cid)), formLong, 17, 9},
		"version 2 Initial":               {padded(long(0xd0, 0x6b3343cf, cid)), formLong, 17, 9},
		"version negotiation":             {padded(long(0x80, 0, cid)), formLong, 17, 9},
		"a version nobody knows":          {padded(long(0xff, 0xdeadbeef, cid)), formLong, 17, 9},
		"no ID":                           {padded(long(0xc0, 1, nil)), formLong, 0, 0},
		"eight octets of a client":        {padded(long(0xc0, 1, cid[:8])), formLong, 8, 0},
		"twenty octets":                   {padded(long(0xc0, 1, append(cid[:17:17], 1, 2, 3))), formLong, 20, 0},
		"longer than version 1 allows":    {padded(long(0xc0, 1, make([]byte, 40))), formLong, 21, 0},
		"long, cut off in its ID":         {append(long(0xc0, 1, nil)[:5], append([]byte{20}, cid[:9]...)...), formNone, 20, 0},
		"short":                           {padded([]byte{0x40}, cid), formShort, 17, 9},
		"short, too short for an ID":      {append([]byte{0x40}, cid[:14]...), formShort, 0, 0},
		"not QUIC: neither bit is set":    {padded([]byte{0x00}, cid), formShort, 17, 9},
		"coalesced: the first one counts": {padded(long(0xc0, 1, cid), long(0xe0, 1, make([]byte, 17))), formLong, 17, 9},
	} {
		if a := p.read(t, test.datagram); a.Form != test.form || a.CidLen != test.cidLen || a.ServerId != test.server || (a.Owned != 0) != (test.server != 0) {
			t.Errorf("%s: %+v, want form %d, %d octets, server %d", name, a, test.form, test.cidLen, test.server)
		}
	}
}

func TestKeyOfNoConfig(t *testing.T) {
	p := newProbe(t)
	for _, c := range []quicid.Config{quicid.Readable, quicid.Unroutable, 8} {
		if p.keys.Set(c, quicid.Key{}) == nil {
			t.Errorf("config %d takes a key", c)
		}
	}
}

// BenchmarkDecode is what a program pays for an owner, without the packet's way
// to it: repeated runs of the probe, by the kernel's own clock.
func BenchmarkDecode(b *testing.B) {
	p := newProbe(b)
	if err := p.keys.Set(1, quicid.Key{}); err != nil {
		b.Fatal(err)
	}
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{1: {}})
	if err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name   string
		config quicid.Config
	}{{"readable", quicid.Readable}, {"encrypted", 1}, {"unroutable", 3}} {
		b.Run(bench.name, func(b *testing.B) {
			cid := [quicid.Len]byte{byte(bench.config)<<5 | quicid.Len - 1}
			keys.Encode(&cid, bench.config, quicid.ID{ServerID: 7}, [quicid.RandomLen]byte{})
			_, took, err := p.objs.Probe.Benchmark(padded([]byte{0x40}, cid[:]), b.N, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/op")
		})
	}
}

// What is set is read back.
func TestKeys(t *testing.T) {
	table, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	want := map[quicid.Config]quicid.Key{1: {1, 2, 3}, 6: {15: 0xff}}
	for config, key := range want {
		if err := table.Set(config, key); err != nil {
			t.Fatal(err)
		}
	}
	got, err := table.Keys()
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if err := table.Clear(6); err != nil {
		t.Fatal(err)
	}
	if got, err = table.Keys(); err != nil || len(got) != 1 || got[1] != want[1] {
		t.Errorf("one is cleared: %v, %v", got, err)
	}
}
