package upstream

import (
	"errors"
	"io"
	"sync"
)

// replayLimit bounds what is kept of a request's body, in bytes. It covers what
// net/http may have read ahead into its write buffer when it finds that a
// pooled connection had been closed before anything was sent on it.
const replayLimit = 16 << 10

var errTooMuchRead = errors.New("request body cannot be sent again: too much of it was read")

// replayBody lets an attempt that has sent nothing be made again with the same
// body: it remembers the first bytes read from it.
//
// Whether an attempt may be repeated is net/http's decision, which asks for the
// body only when nothing was written or the request says it is idempotent.
type replayBody struct {
	src io.ReadCloser

	mu      sync.Mutex
	head    []byte // what has been read from src, up to replayLimit
	lost    bool   // more than that has been read
	current *replayReader
}

// replayReader is one attempt's view of the body. Closing it does not close
// the body: a failed dial closes what it was given, and the next attempt must
// still find it.
type replayReader struct {
	body *replayBody
	off  int // read so far of head
}

func (b *replayBody) reader() io.ReadCloser {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = &replayReader{body: b}
	return b.current
}

// again is a http.Request.GetBody. A reader of an earlier attempt finds its body closed.
func (b *replayBody) again() (io.ReadCloser, error) {
	b.mu.Lock()
	lost := b.lost
	b.mu.Unlock()
	if lost {
		return nil, errTooMuchRead
	}
	return b.reader(), nil
}

func (r *replayReader) Read(p []byte) (int, error) {
	b := r.body
	// Held while src blocks: an attempt that has been given up and its
	// successor must not read in turns.
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != r {
		return 0, errors.New("request body belongs to another attempt")
	}
	if r.off < len(b.head) {
		n := copy(p, b.head[r.off:])
		r.off += n
		return n, nil
	}
	n, err := b.src.Read(p)
	if !b.lost {
		if len(b.head)+n > replayLimit {
			b.lost, b.head = true, nil
		} else {
			b.head = append(b.head, p[:n]...)
		}
	}
	r.off = len(b.head)
	return n, err
}

func (r *replayReader) Close() error { return nil }
