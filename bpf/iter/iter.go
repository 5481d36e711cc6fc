// Package iter reads what the kernel keeps per listening socket and tells no
// other way: the half-open handshakes of one socket of a reuseport group.
package iter

//go:generate go tool bpf2go -target bpfel -type queue queues queues.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/baton-mesh/baton/bpf/internal/built"
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
	dir  string // where it is pinned; empty: nowhere
	objs queuesObjects
	iter *link.Iter
}

const (
	// mostAsked is how many sockets can be asked about at once: as many as there are in
	// the tables of package reuseport. The map has a bucket for each.
	mostAsked = 1 << 18
	// layout names the pinned map's version, as in package reuseport.
	layout = "iter-v1"
)

// Open loads the iterator. The namespace it sees is the one of the thread that
// later calls [Queues.Read]. When dir is not empty it is a directory of a BPF file
// system, and the iterator is pinned below dir/iter-v1: it is not loaded again where
// an earlier process of this build has left it. One process at a time may use it.
func Open(dir string) (*Queues, error) {
	q := new(Queues)
	program := built.Of(queuesProgQueues, _QueuesBytes)
	if dir != "" {
		q.dir = filepath.Join(dir, layout)
	}
	if err := q.reopen(program); err != nil {
		if err := q.load(program); err != nil {
			return nil, fmt.Errorf("load iter/tcp: %w", err)
		}
	}
	it, err := link.AttachIter(link.IterOptions{Program: q.objs.Queues})
	if err != nil {
		q.objs.Close()
		return nil, fmt.Errorf("attach iter/tcp: %w", err)
	}
	q.iter = it
	return q, nil
}

// reopen finds what an earlier process has pinned. It may have died while it asked.
func (q *Queues) reopen(program built.Program) (err error) {
	if q.dir == "" {
		return os.ErrNotExist
	}
	defer func() {
		if err != nil {
			q.objs.Close()
			q.objs = queuesObjects{}
		}
	}()
	if q.objs.Wanted, err = ebpf.LoadPinnedMap(filepath.Join(q.dir, queuesMapWanted), nil); err != nil {
		return err
	}
	if q.objs.Queues, err = program.Open(q.dir, q.objs.Wanted); err != nil {
		return err
	}
	var cookie uint64
	var mark uint8
	var left []uint64
	all := q.objs.Wanted.Iterate()
	for all.Next(&cookie, &mark) {
		left = append(left, cookie)
	}
	if err := all.Err(); err != nil || len(left) == 0 {
		return err
	}
	return q.unwant(left)
}

func (q *Queues) load(program built.Program) error {
	spec, err := loadQueues()
	if err != nil {
		return err
	}
	spec.Maps[queuesMapWanted].MaxEntries = mostAsked
	if err := spec.LoadAndAssign(&q.objs, nil); err != nil || q.dir == "" {
		return err
	}
	// Not to be had, a pin is no reason to have no iterator.
	err = os.RemoveAll(q.dir)
	if err == nil {
		err = os.MkdirAll(q.dir, 0o700)
	}
	if err == nil {
		err = q.objs.Wanted.Pin(filepath.Join(q.dir, queuesMapWanted))
	}
	if err == nil {
		err = program.Pin(q.dir, q.objs.Queues)
	}
	if err != nil {
		os.RemoveAll(q.dir)
		q.dir = ""
	}
	return nil
}

// Unpin takes the pins away.
func (q *Queues) Unpin() error {
	if q.dir == "" {
		return nil
	}
	return os.RemoveAll(q.dir)
}

// Supported loads and frees the iterator: nil where this kernel and these
// privileges allow it.
func Supported() error {
	q, err := Open("")
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

// Close gives back what this process holds.
func (q *Queues) Close() error {
	return errors.Join(q.iter.Close(), q.objs.Close())
}
