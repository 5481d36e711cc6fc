package demo

import (
	"bufio"
	"bytes"
	"testing"
)

func TestAcceptKeyOfRFC6455(t *testing.T) {
	if got := acceptKey("dGhlIHNhbXBsZSBub25jZQ=="); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Error(got)
	}
}

func TestFramesReadBackAsWritten(t *testing.T) {
	for _, size := range []int{0, 1, 125, 126, 65535, 65536} {
		for _, mask := range []bool{false, true} {
			var b bytes.Buffer
			want := frame{opBinary, patternBytes(7, size)}
			if err := writeFrame(&b, want, mask); err != nil {
				t.Fatal(err)
			}
			got, err := readFrame(bufio.NewReader(&b))
			if err != nil || got.op != want.op || !bytes.Equal(got.payload, want.payload) {
				t.Errorf("%d bytes, mask %t: got %d bytes, %v", size, mask, len(got.payload), err)
			}
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0x82, 0x05, 'h', 'e', 'l', 'l', 'o'})
	f.Add([]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readFrame(bufio.NewReader(bytes.NewReader(b)))
		if err == nil && len(got.payload) > len(b) {
			t.Errorf("%d bytes of payload out of %d", len(got.payload), len(b))
		}
	})
}
