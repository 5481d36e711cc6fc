// Package iter reads what the kernel keeps per listening socket and tells no
// other way: the half-open handshakes of one socket of a reuseport group.
package iter

//go:generate go tool bpf2go -target bpfel -type queue queues queues.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/baton-mesh/baton/bpf/internal/patient"
)

// Queue is what waits on one listening socket.
type Queue struct {
	// HalfOpen counts connections whose SYN is answered and whose ACK has not
	// come (icsk_accept_queue.qlen, include/net/request_sock.h).
	HalfOpen int
	// ToAccept counts finished connections that nobody has accepted yet
	// (sk_ack_backlog, include/net/sock.h).
	ToAccept int
	// Backlog is how many may wait to be accepted; one more is let in
	// (sk_acceptq_is_full, include/net/sock.h).
	Backlog int
	// Dropped counts, since the socket was made, segments that it let fall
	// (sk_drops): SYNs and last ACKs that found a queue full, and such as no
	// listening socket has a use for: a stray RST or FIN. A client sends its SYN
	// again, so a handshake that waits for room is counted more than once.
	// It wraps.
	Dropped uint32
}

// Queues reads the queues of the listening sockets of one network namespace.
// It may be used by one goroutine at a time.
type Queues struct {
	objs queuesObjects
	iter *link.Iter
}

// Open loads the iterator. The namespace it sees is the one of the thread that
// later calls [Queues.Read].
func Open() (*Queues, error) {
	q := new(Queues)
	if err := loadQueuesObjects(&q.objs, nil); err != nil {
		return nil, fmt.Errorf("load iter/tcp: %w", err)
	}
	it, err := link.AttachIter(link.IterOptions{Program: q.objs.Queues})
	if err != nil {
		q.objs.Close()
		return nil, fmt.Errorf("attach iter/tcp: %w", err)
	}
	q.iter = it
	return q, nil
}

// Supported loads and frees the iterator: nil where this kernel and these
// privileges allow it.
func Supported() error {
	q, err := Open()
	if err != nil {
		return err
	}
	return q.Close()
}

// Read returns the queues of the sockets with these cookies (SO_COOKIE). A
// socket that does not listen any more is missing from the answer.
func (q *Queues) Read(cookies []uint64) (found map[uint64]Queue, err error) {
	found = make(map[uint64]Queue, len(cookies))
	if len(cookies) == 0 {
		return found, nil
	}
	if err := q.want(cookies); err != nil {
		return nil, fmt.Errorf("ask for a listener's queue: %w", err)
	}
	defer func() { err = errors.Join(err, q.unwant(cookies)) }()

	r, err := q.iter.Open()
	if err != nil {
		return nil, fmt.Errorf("open iter/tcp: %w", err)
	}
	defer r.Close()

	// One read, of exactly as much as is wanted: the kernel stops walking when
	// the buffer is full, before it comes to the established connections.
	const record = 24
	buf := make([]byte, record*len(cookies))
	n, err := io.ReadFull(r, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read iter/tcp: %w", err)
	}
	for b := buf[:n-n%record]; len(b) > 0; b = b[record:] {
		found[binary.NativeEndian.Uint64(b)] = Queue{
			HalfOpen: int(binary.NativeEndian.Uint32(b[8:])),
			ToAccept: int(binary.NativeEndian.Uint32(b[12:])),
			Backlog:  int(binary.NativeEndian.Uint32(b[16:])),
			Dropped:  binary.NativeEndian.Uint32(b[20:]),
		}
	}
	return found, nil
}

// want enters cookies into the map, by as few system calls as it takes: there may
// be thousands, many times a second.
func (q *Queues) want(cookies []uint64) error {
	marks := make([]uint8, len(cookies))
	return patient.Update(func() error {
		n, err := q.objs.Wanted.BatchUpdate(cookies, marks, nil)
		if err != nil && n < len(cookies) {
			cookies, marks = cookies[n:], marks[n:] // what is in stays in
		}
		return err
	})
}

func (q *Queues) unwant(cookies []uint64) error {
	_, err := q.objs.Wanted.BatchDelete(cookies, nil)
	if err == nil {
		return nil
	}
	var errs []error // a key that is not there, say because it was asked for twice, ends a batch
	for _, c := range cookies {
		if err := q.objs.Wanted.Delete(c); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close frees the iterator.
func (q *Queues) Close() error {
	return errors.Join(q.iter.Close(), q.objs.Close())
}
