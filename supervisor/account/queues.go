package account

import (
	"maps"
	"sync"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// QueueLengths counts connections at listening sockets, in all.
type QueueLengths struct {
	HalfOpen int `json:"half_open"` // SYN answered, ACK not seen
	ToAccept int `json:"to_accept"` // finished, not accepted yet
}

// QueueStatus is what waits for a generation at one listener, what found no room
// there, and what came from listening sockets that closed.
type QueueStatus struct {
	QueueLengths
	// Backlog is how many may wait to be accepted, at all its workers together; one
	// more is let in at each.
	Backlog int `json:"backlog"`
	// Dropped counts segments that its sockets let fall: handshakes that found a queue
	// full, each time that they were tried, and such as no listener has a use for, a
	// stray RST or FIN.
	Dropped uint64 `json:"dropped"`
	// Moved is what the kernel moved there, by the steering program's choice.
	Moved reuseport.Moved `json:"moved"`

	Full bool `json:"-"` // at one of its workers at least
}

// DatagramQueue is what waits for a generation at one listener of UDP, as
// [steer.Listener.Name], and what found no room there.
type DatagramQueue struct {
	Octets uint64 `json:"octets"` // that wait, with what the kernel needs beside them
	Room   uint64 `json:"room"`   // for so many, at all its workers together
	// Dropped counts datagrams that its sockets let fall.
	Dropped uint64 `json:"dropped"`
}

// Queues are those of one generation's sockets. Nil ones are empty.
type Queues struct {
	by      steer.Steering
	slot    uint8
	sockets steer.Sockets

	mu            sync.Mutex
	last          map[string]QueueStatus // as last read, by listener
	lastDatagrams map[string]DatagramQueue
}

// NewQueues are the queues of sockets that stand in a slot.
func NewQueues(by steer.Steering, slot uint8, sockets steer.Sockets) *Queues {
	return &Queues{by: by, slot: slot, sockets: sockets}
}

// Read reads them, by listener. Of sockets that have closed it is what was read last.
// The error is of the kernel's tables.
func (q *Queues) Read() (map[string]QueueStatus, error) {
	if q == nil || len(q.sockets) == 0 {
		return nil, nil
	}
	found, err := q.by.Queued(q.sockets)
	if err != nil {
		return nil, err
	}
	all, err := q.by.Moved(q.slot)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last == nil {
		q.last = map[string]QueueStatus{}
	}
	for name, workers := range q.sockets {
		now := QueueStatus{Moved: all[name]}
		seen := 0
		for _, sock := range workers {
			one, ok := found[sock.Cookie]
			if !ok {
				continue
			}
			seen++
			now.HalfOpen += one.HalfOpen
			now.ToAccept += one.ToAccept
			now.Backlog += one.Backlog
			now.Dropped += uint64(one.Dropped)
			now.Full = now.Full || one.ToAccept > one.Backlog
		}
		last := q.last[name]
		if seen < len(workers) {
			now.Dropped = max(now.Dropped, last.Dropped)
		}
		// An emptied slot has no tables any more.
		now.Moved.HalfOpen = max(now.Moved.HalfOpen, last.Moved.HalfOpen)
		now.Moved.ToAccept = max(now.Moved.ToAccept, last.Moved.ToAccept)
		q.last[name] = now
	}
	return maps.Clone(q.last), nil
}

// ReadDatagrams reads those of UDP, by listener. Of sockets that have closed it is what
// was read last.
func (q *Queues) ReadDatagrams() (map[string]DatagramQueue, error) {
	if q == nil {
		return nil, nil
	}
	found, err := q.by.Buffers(q.slot)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, b := range found {
		if q.lastDatagrams == nil {
			q.lastDatagrams = map[string]DatagramQueue{}
		}
		now := DatagramQueue{Octets: uint64(b.Queued), Room: uint64(b.Room), Dropped: uint64(b.Dropped)}
		now.Dropped = max(now.Dropped, q.lastDatagrams[name].Dropped) // a worker's socket may have gone
		q.lastDatagrams[name] = now
	}
	return maps.Clone(q.lastDatagrams), nil
}

// Dropped is what its sockets had let fall when they were last read, by listener.
func (q *Queues) Dropped() map[string]uint64 {
	all := map[string]uint64{}
	if q == nil {
		return all
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, one := range q.last {
		all[name] = one.Dropped
	}
	for name, one := range q.lastDatagrams {
		all[name] = one.Dropped
	}
	return all
}
