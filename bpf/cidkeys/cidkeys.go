// Package cidkeys gives the programs that read QUIC connection IDs the keys of
// the encrypted ones: one map, shared by all who include server_id.h.
package cidkeys

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"

	"github.com/baton-mesh/baton/quicid"
)

// MapName is the map's name in every program that includes server_id.h: its key
// in [ebpf.CollectionOptions.MapReplacements].
const MapName = "cid_keys"

// Sizes of AES-128 (FIPS 197): words of a key, rounds, words of all round keys.
const (
	keyWords   = quicid.KeyLen / 4
	rounds     = 10
	roundWords = (rounds + 1) * keyWords
)

// entry is struct cid_key of server_id.h.
type entry struct {
	Set       uint32
	RoundKeys [roundWords]uint32
}

// Table is the keys by config, as BPF programs see them.
type Table struct{ m *ebpf.Map }

// Spec is the map's shape.
func Spec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: MapName, Type: ebpf.Array, KeySize: 4, ValueSize: 4 + 4*roundWords, MaxEntries: uint32(quicid.Unroutable) + 1,
	}
}

// New makes an empty table.
func New() (*Table, error) {
	m, err := ebpf.NewMap(Spec())
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", MapName, err)
	}
	return &Table{m}, nil
}

// Pinned opens the table that is pinned at a path.
func Pinned(path string) (*Table, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open the pinned map %s: %w", MapName, err)
	}
	if err := Spec().Compatible(m); err != nil {
		m.Close()
		return nil, fmt.Errorf("the pinned map %s: %w", MapName, err)
	}
	return Of(m), nil
}

// Map is the map, to load programs with and to pin. It stays the table's.
func (t *Table) Map() *ebpf.Map { return t.m }

// Of is the table in a map that a program with server_id.h has brought, pinned
// perhaps. The map stays the caller's to close.
func Of(m *ebpf.Map) *Table { return &Table{m} }

// Set gives config c, 1 to 6, its key. The next packet is read with it. A key
// is not written whole at once: set one of a config that nobody uses yet, or
// [Table.Clear] it first.
func (t *Table) Set(c quicid.Config, key quicid.Key) error {
	if c == quicid.Readable || c >= quicid.Unroutable {
		return fmt.Errorf("a key for config %d: 1 to %d have one", c, quicid.Unroutable-1)
	}
	e := entry{Set: 1, RoundKeys: decryptionKeys(key)}
	if err := t.m.Put(uint32(c), &e); err != nil {
		return fmt.Errorf("set the key of config %d: %w", c, err)
	}
	return nil
}

// Clear takes the key of a config away: its IDs name nobody from now on.
func (t *Table) Clear(c quicid.Config) error {
	if err := t.m.Put(uint32(c), &entry{}); err != nil {
		return fmt.Errorf("clear the key of config %d: %w", c, err)
	}
	return nil
}

// Keys reads all keys back, by config.
func (t *Table) Keys() (map[quicid.Config]quicid.Key, error) {
	keys := map[quicid.Config]quicid.Key{}
	for c := quicid.Readable + 1; c < quicid.Unroutable; c++ {
		var e entry
		if err := t.m.Lookup(uint32(c), &e); err != nil {
			return nil, fmt.Errorf("read the key of config %d: %w", c, err)
		}
		if e.Set != 0 {
			keys[c] = e.key()
		}
	}
	return keys, nil
}

// key is what the round keys were expanded from: the last of them, as it stands,
// since decryption goes from the last round to the first.
func (e *entry) key() (key quicid.Key) {
	for i, word := range e.RoundKeys[rounds*keyWords:] {
		binary.BigEndian.PutUint32(key[4*i:], word)
	}
	return key
}

// Close gives the map back. Programs that were loaded with it keep it.
func (t *Table) Close() error { return t.m.Close() }

// decryptionKeys expands a key for aes.h: the key schedule of FIPS 197 section
// 5.2, its rounds in reverse, and InvMixColumns over all but the first and the
// last, as the equivalent inverse cipher of section 5.3.5 wants them.
func decryptionKeys(key quicid.Key) (dk [roundWords]uint32) {
	var w [roundWords]uint32
	for i := range keyWords {
		w[i] = binary.BigEndian.Uint32(key[4*i:])
	}
	rcon := uint8(1)
	for i := keyWords; i < roundWords; i++ {
		t := w[i-1]
		if i%keyWords == 0 {
			t = substitute(bits.RotateLeft32(t, 8)) ^ uint32(rcon)<<24
			rcon = double(rcon)
		}
		w[i] = w[i-keyWords] ^ t
	}
	for round := range rounds + 1 {
		for i := range keyWords {
			word := w[(rounds-round)*keyWords+i]
			if round > 0 && round < rounds {
				word = inverseMix(word)
			}
			dk[round*keyWords+i] = word
		}
	}
	return dk
}

// double multiplies by x in AES's field of 256 elements.
func double(a uint8) uint8 {
	d := a << 1
	if a&0x80 != 0 {
		d ^= 0x1b
	}
	return d
}

func times(a, b uint8) (product uint8) {
	for ; b > 0; a, b = double(a), b>>1 {
		if b&1 != 0 {
			product ^= a
		}
	}
	return product
}

// inverseMix is InvMixColumns of one column.
func inverseMix(word uint32) (mixed uint32) {
	for row := range 4 {
		a := uint8(bits.RotateLeft32(word, 8*row) >> 24)
		column := uint32(times(a, 14))<<24 | uint32(times(a, 9))<<16 | uint32(times(a, 13))<<8 | uint32(times(a, 11))
		mixed ^= bits.RotateLeft32(column, -8*row)
	}
	return mixed
}

// substitute puts each octet of a word through the S-box of FIPS 197, section
// 5.1.1: the inverse in the field, then an affine map of its bits.
func substitute(word uint32) (substituted uint32) {
	for shift := 0; shift < 32; shift += 8 {
		inverse, power := uint8(1), uint8(word>>shift)
		for range 7 { // the inverse of a is a to the 254th: 2 + 4 + … + 128
			power = times(power, power)
			inverse = times(inverse, power)
		}
		octet := inverse ^ 0x63
		for i := 1; i <= 4; i++ {
			octet ^= bits.RotateLeft8(inverse, i)
		}
		substituted |= uint32(octet) << shift
	}
	return substituted
}
