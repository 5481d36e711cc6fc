package listener

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"
)

// A cut anywhere in the stream of frames leads to the same frames, and they are
// those that another reader finds.
func FuzzH2Frames(f *testing.F) {
	var seed bytes.Buffer
	framer := http2.NewFramer(&seed, nil)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("abc"), EndStream: true})
	framer.WriteContinuation(1, true, nil)
	framer.WriteData(1, true, bytes.Repeat([]byte{0, 0, 1}, 100))
	framer.WritePing(true, pingPayload)
	f.Add(seed.Bytes(), uint8(1))
	f.Add(seed.Bytes(), uint8(8))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		type frame struct {
			kind, flags byte
			stream      uint32
			end         int
			block       bool
			payload     [8]byte
		}
		walk := func(fr *h2Frames, b []byte, before int) (found []frame) {
			for at := 0; at < len(b); {
				n, whole := fr.next(b[at:])
				if n < 0 || n == 0 && !whole || n > len(b)-at {
					t.Fatalf("went %d of %d", n, len(b)-at)
				}
				at += n
				if whole != fr.between() {
					t.Fatal("whole, and not at the end")
				}
				if whole {
					found = append(found, frame{fr.kind(), fr.flags(), fr.stream(), before + at, fr.block, fr.payload})
				}
			}
			return found
		}
		var whole, parts h2Frames
		want := walk(&whole, b, 0)
		var got []frame
		for at := 0; at < len(b); {
			part := b[at:min(len(b), at+int(step)+1)]
			got = append(got, walk(&parts, part, at)...)
			at += len(part)
		}
		if len(got) != len(want) {
			t.Fatalf("%d frames in parts, %d at once", len(got), len(want))
		}
		begin := 0
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("frame %d is %v in parts, %v at once", i, got[i], want[i])
			}
			head, err := http2.ReadFrameHeader(bytes.NewReader(b[begin:]))
			if err != nil || byte(head.Type) != got[i].kind || byte(head.Flags) != got[i].flags || head.StreamID != got[i].stream {
				t.Fatalf("frame %d is %v, another reader finds %v, %v", i, got[i], head, err)
			}
			begin = got[i].end
		}
	})
}
