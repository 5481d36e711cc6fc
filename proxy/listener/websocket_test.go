package listener

import (
	"bytes"
	"testing"
)

// A cut anywhere in the stream of frames leads to the same boundaries.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x81, 2, 'h', 'i', 0x88, 0}, uint8(1))
	f.Add([]byte{0x82, 126, 0, 3, 1, 2, 3, 0x81, 0x81, 9, 9, 9, 9, 'x'}, uint8(3))
	f.Add(append([]byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0, 2}, 1, 2, 0x88), uint8(5))
	f.Add([]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, parts frames
		walk := func(fr *frames, b []byte) (ends []int) {
			for at := 0; at < len(b); {
				n := fr.next(b[at:])
				if n <= 0 || n > len(b)-at {
					t.Fatalf("went %d of %d", n, len(b)-at)
				}
				at += n
				if fr.between() {
					ends = append(ends, at)
				}
			}
			return ends
		}
		want := walk(&whole, b)
		var got []int
		for at := 0; at < len(b); {
			part := b[at:min(len(b), at+int(step)+1)]
			for _, end := range walk(&parts, part) {
				got = append(got, at+end)
			}
			at += len(part)
		}
		if len(got) != len(want) || whole.closed != parts.closed || whole.left != parts.left {
			t.Fatalf("ends %v in parts, %v at once", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("ends %v in parts, %v at once", got, want)
			}
		}
	})
}

func TestFramesFindTheBoundaries(t *testing.T) {
	frame := func(head []byte, n int) []byte { return append(head, bytes.Repeat([]byte{0x88}, n)...) }
	tests := []struct {
		name  string
		frame []byte
	}{
		{"empty", frame([]byte{0x81, 0}, 0)},
		{"7 bits", frame([]byte{0x81, 125}, 125)},
		{"16 bits", frame([]byte{0x82, 126, 1, 0}, 256)},
		{"64 bits", frame([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, 65536)},
		{"masked", frame([]byte{0x82, 0x80 | 3, 1, 2, 3, 4}, 3)},
		{"masked 16 bits", frame([]byte{0x82, 0x80 | 126, 0, 200, 1, 2, 3, 4}, 200)},
	}
	for _, test := range tests {
		var f frames
		stream := append(bytes.Clone(test.frame), 0x88, 0)
		if n := f.next(stream); n != len(test.frame) || !f.between() || f.closed {
			t.Errorf("%s: ends at %d, want %d; closed %t", test.name, n, len(test.frame), f.closed)
		}
		if f.next(stream[len(test.frame):]); !f.closed {
			t.Errorf("%s: the close frame behind it was missed", test.name)
		}
	}
}
