package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// pattern yields size bytes that depend on the seed and on each byte's offset,
// so that a body which is short, shifted or another request's is noticed.
type pattern struct {
	seed      uint32
	off, size int
}

// Read implements io.Reader.
func (p *pattern) Read(b []byte) (int, error) {
	if p.off == p.size {
		return 0, io.EOF
	}
	n := min(len(b), p.size-p.off)
	for i := range b[:n] {
		at := uint32(p.off + i)
		b[i] = byte((at+p.seed)*2654435761>>24) ^ byte(at>>8)
	}
	p.off += n
	return n, nil
}

func patternBytes(seed uint32, size int) []byte {
	b := make([]byte, size)
	io.ReadFull(&pattern{seed: seed, size: size}, b)
	return b
}

// expect reads got to its end and compares it with want.
func expect(got io.Reader, want *pattern) error {
	a, b := make([]byte, 16<<10), make([]byte, 16<<10)
	for {
		n, err := got.Read(a)
		m, _ := io.ReadFull(want, b[:n])
		if m < n {
			return fmt.Errorf("more than the %d bytes of the answer", want.size)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return fmt.Errorf("wrong bytes before offset %d of the answer", want.off)
		}
		switch {
		case errors.Is(err, io.EOF) && want.off < want.size:
			return fmt.Errorf("answer ended after %d of %d bytes", want.off, want.size)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("answer broke off after %d of %d bytes: %w", want.off, want.size, err)
		}
	}
}
