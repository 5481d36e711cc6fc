package listener

import (
	"bytes"
	"encoding/binary"
	"io"
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

// Wherever the goodbye is wanted in what the server sends, it comes at the end of
// the frame on its way and is the last of all; a server that has said goodbye
// itself is not spoken for.
func TestGoodbyeComesBetweenFrames(t *testing.T) {
	const fin, compressed = 0x80, 0x40 // compressed: RFC 7692, 6
	frame := func(head byte, payload string) []byte {
		b := []byte{head, byte(len(payload))}
		switch n := len(payload); {
		case n > 0xffff:
			b[1] = 127
			b = binary.BigEndian.AppendUint64(b, uint64(n))
		case n > 125:
			b[1] = 126
			b = binary.BigEndian.AppendUint16(b, uint16(n))
		}
		return append(b, payload...)
	}
	text := func(n int) string { return string(bytes.Repeat([]byte{0x88, 0x02}, n/2)) } // like frames that it has not
	tests := []struct {
		name   string
		frames [][]byte
	}{
		{"one of each length", [][]byte{frame(fin|2, ""), frame(fin|2, "x"), frame(fin|1, text(124)), frame(fin|1, text(126)), frame(fin|1, text(300))}},
		{"64 bits", [][]byte{frame(fin|2, text(65536)), frame(fin|1, "x")}},
		{"64 bits where 7 were enough", [][]byte{{fin | 2, 127, 0, 0, 0, 0, 0, 0, 0, 1, 'x'}, frame(fin|1, "x")}},
		{"fragments", [][]byte{frame(1, "a"), frame(0, ""), frame(0, "b"), frame(fin, "c"), frame(fin|1, "x")}},
		{"control frames between fragments", [][]byte{frame(1, "a"), frame(fin|9, text(124)), frame(0, "b"), frame(fin|10, ""), frame(fin, "c")}},
		{"compressed", [][]byte{frame(compressed|1, text(10)), frame(fin, text(10)), frame(fin|compressed|2, text(126))}},
		{"reserved bits and opcodes", [][]byte{frame(fin|0x70|3, "a"), frame(fin|0xb, "b"), frame(0xf, "c")}},
		{"masked", [][]byte{append([]byte{fin | 1, 0x80 | 2, 0x88, 0x02, 0x03, 0xe9}, "ab"...), frame(fin|1, "x")}},
		{"the server's own close", [][]byte{frame(fin|1, "a"), frame(fin|8, "\x03\xe8bye")}},
		{"the server's own close without a status", [][]byte{frame(fin|9, "a"), frame(fin|8, "")}},
	}
	for _, test := range tests {
		stream := bytes.Join(test.frames, nil)
		for _, wanted := range goodbyeMoments(test.frames) {
			r := NewRegistry()
			c, client := accepted(t, r, Active)
			u := c.Upgrade(nil, true).(*upgraded)
			got := make(chan []byte)
			go func() {
				b, _ := io.ReadAll(client)
				got <- b
			}()
			u.Write(stream[:wanted])
			u.goAway(0)
			u.Write(stream[wanted:])
			u.CloseWrite()
			if got, want := <-got, saidGoodbye(test.frames, wanted); !bytes.Equal(got, want) {
				t.Errorf("%s: wanted after %d octets, got\n%.100x, want\n%.100x", test.name, wanted, got, want)
			}
			client.Close()
			c.Close()
		}
	}
}

// goodbyeMoments are all octets near the beginning and the end of a frame.
func goodbyeMoments(frames [][]byte) (moments []int) {
	const near = 16
	begin := 0
	for _, f := range frames {
		for i := range f {
			if i < near || len(f)-i < near {
				moments = append(moments, begin+i)
			}
		}
		begin += len(f)
	}
	return append(moments, begin)
}

// saidGoodbye is what a client has to get of frames if the goodbye is wanted
// after that many octets.
func saidGoodbye(frames [][]byte, wanted int) (want []byte) {
	for _, f := range frames {
		if len(want) >= wanted {
			break
		}
		want = append(want, f...)
		if f[0]&0xf == 8 {
			return bytes.Join(frames, nil) // as the server has it
		}
	}
	return append(want, goingAway...)
}
