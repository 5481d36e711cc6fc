package demo

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// The part of RFC 6455 that an echo needs: whole frames, no extensions. Written
// here because the demo must see each frame and each close code as it came, on a
// connection whose address it knows.

const (
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xA

	// closeNormal and closeGoingAway are the close codes of RFC 6455, 7.4.1.
	closeNormal    = 1000
	closeGoingAway = 1001

	maxFrame = 1 << 20
)

// frame is one unfragmented WebSocket frame.
type frame struct {
	op      byte
	payload []byte
}

func closeFrame(code uint16) frame {
	return frame{opClose, binary.BigEndian.AppendUint16(nil, code)}
}

// closeCode is the code of a close frame; 1005 stands for none (RFC 6455, 7.1.5).
func (f frame) closeCode() int {
	if len(f.payload) < 2 {
		return 1005
	}
	return int(binary.BigEndian.Uint16(f.payload))
}

// writeFrame writes f in one Write. Clients must mask, servers must not.
func writeFrame(w io.Writer, f frame, mask bool) error {
	b := []byte{0x80 | f.op}
	var maskBit byte
	if mask {
		maskBit = 0x80
	}
	switch n := len(f.payload); {
	case n < 126:
		b = append(b, maskBit|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, maskBit|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, maskBit|127), uint64(n))
	}
	start := len(b)
	if mask {
		b = binary.BigEndian.AppendUint32(b, rand.Uint32())
		start += 4
	}
	b = append(b, f.payload...)
	if mask {
		xor(b[start:], b[start-4:start])
	}
	_, err := w.Write(b)
	return err
}

// readFrame reads one frame. io.EOF means that the peer closed between two frames.
func readFrame(r *bufio.Reader) (frame, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	if head[0]&0x80 == 0 || head[0]&0x70 != 0 {
		return frame{}, fmt.Errorf("frame header %#x: fragments and extensions were not agreed", head[0])
	}
	size := uint64(head[1] & 0x7f)
	var err error
	switch size {
	case 126:
		var n uint16
		err = binary.Read(r, binary.BigEndian, &n)
		size = uint64(n)
	case 127:
		err = binary.Read(r, binary.BigEndian, &size)
	}
	if err != nil {
		return frame{}, fmt.Errorf("frame length: %w", err)
	}
	if size > maxFrame {
		return frame{}, fmt.Errorf("frame of %d bytes, more than %d", size, maxFrame)
	}
	var key [4]byte
	masked := head[1]&0x80 != 0
	if masked {
		if _, err := io.ReadFull(r, key[:]); err != nil {
			return frame{}, fmt.Errorf("frame mask: %w", err)
		}
	}
	f := frame{op: head[0] & 0x0f, payload: make([]byte, size)}
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, fmt.Errorf("frame payload: %w", err)
	}
	if masked {
		xor(f.payload, key[:])
	}
	return f, nil
}

func xor(b, key []byte) {
	for i := range b {
		b[i] ^= key[i%4]
	}
}

// acceptKey answers the key of a handshake (RFC 6455, 4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// echoFrames is the server's half: until a close frame, which it answers, or an error.
func echoFrames(w io.Writer, r *bufio.Reader) {
	for {
		f, err := readFrame(r)
		if err != nil {
			return
		}
		if f.op == opPing {
			f.op = opPong
		}
		if err := writeFrame(w, f, false); err != nil || f.op == opClose {
			return
		}
	}
}
