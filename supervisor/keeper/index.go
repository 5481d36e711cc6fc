package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"

	"golang.org/x/sys/unix"
)

// index is a memfd that says which names the numbered descriptors of a store have. It
// lies in the store itself, so it outlives its writer, who may die at any moment: there
// are two places, written by turns, and what counts is the later one that is whole.
type index struct {
	fd     int
	writes uint64
}

// indexPlace is the room for one of the two, and indexHead what each begins with: the
// layout, which write it is of, the length and the sum of what follows.
const (
	indexPlace  = 16 << 20
	indexHead   = 20
	indexLayout = 1
)

var errNoIndex = errors.New("the store has no list of names that is whole")

func newIndex() (*index, error) {
	fd, err := unix.MemfdCreate("baton-keeper-names", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &index{fd: fd}, nil
}

// write replaces what the index says.
func (x *index) write(names map[string]uint64) error {
	text, err := json.Marshal(names)
	if err != nil {
		return err
	}
	if len(text) > indexPlace-indexHead {
		return errors.New("too many names for the store's list")
	}
	x.writes++
	all := make([]byte, indexHead, indexHead+len(text))
	binary.LittleEndian.PutUint32(all[0:], indexLayout)
	binary.LittleEndian.PutUint64(all[4:], x.writes)
	binary.LittleEndian.PutUint32(all[12:], uint32(len(text)))
	binary.LittleEndian.PutUint32(all[16:], sumOf(all, text))
	_, err = unix.Pwrite(x.fd, append(all, text...), int64(x.writes%2)*indexPlace)
	return err
}

func sumOf(head, text []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(head[:16]), crc32.IEEETable, text)
}

// read is what the index says, and makes it ready to be written on.
func (x *index) read() (names map[string]uint64, err error) {
	for place := range int64(2) {
		head := make([]byte, indexHead)
		if n, err := unix.Pread(x.fd, head, place*indexPlace); err != nil || n < indexHead {
			continue
		}
		writes, length := binary.LittleEndian.Uint64(head[4:]), binary.LittleEndian.Uint32(head[12:])
		if binary.LittleEndian.Uint32(head) != indexLayout || writes <= x.writes || length > indexPlace-indexHead {
			continue
		}
		text := make([]byte, length)
		if n, err := unix.Pread(x.fd, text, place*indexPlace+indexHead); err != nil || n < len(text) || sumOf(head, text) != binary.LittleEndian.Uint32(head[16:]) {
			continue
		}
		var said map[string]uint64
		if json.Unmarshal(text, &said) == nil {
			names, x.writes = said, writes
		}
	}
	if names == nil {
		return nil, errNoIndex
	}
	return names, nil
}

// The names in the store (FDNAME=). Numbers, because names of a keeper may be of any
// kind, and may share a descriptor, of which a store keeps one.
const (
	storedIndex = "names"
	storedProbe = "room" // asks whether there is room
)
