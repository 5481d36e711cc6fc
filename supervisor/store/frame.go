package store

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// A frame is a record in a file:
//
//	0..3     4..7             8..11                12..
//	"BTN1"   length u32 BE    CRC-32C of payload   payload
//
// The mark lets a reader find the next record behind damage.
const (
	frameHead = 12
	// mostPayload bounds a record: a damaged length must not ask for memory.
	mostPayload = 16 << 20
)

var (
	mark       = []byte("BTN1")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// appendFrame appends a record with the payload to b.
func appendFrame(b, payload []byte) []byte {
	b = append(b, mark...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

// scan calls each with the payload of every whole record, in order, and returns
// how many bytes belong to none: what is torn, overwritten or foreign.
func scan(data []byte, each func(payload []byte)) (damaged int) {
	for len(data) > 0 {
		if payload, ok := frameAt(data); ok {
			each(payload)
			data = data[frameHead+len(payload):]
			continue
		}
		next := bytes.Index(data[1:], mark)
		if next < 0 {
			return damaged + len(data)
		}
		damaged += next + 1
		data = data[next+1:]
	}
	return damaged
}

// frameAt is the payload of the record that data begins with, if it does.
func frameAt(data []byte) ([]byte, bool) {
	if len(data) < frameHead || !bytes.HasPrefix(data, mark) {
		return nil, false
	}
	n := binary.BigEndian.Uint32(data[4:])
	if n > mostPayload || int(n) > len(data)-frameHead {
		return nil, false
	}
	payload := data[frameHead : frameHead+int(n)]
	return payload, crc32.Checksum(payload, castagnoli) == binary.BigEndian.Uint32(data[8:])
}
