package steer

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// CloseSinks refuses new clients: with the last generation nobody listens any more.
func (s *BPF) CloseSinks() {
	for _, l := range s.all() {
		if !l.udp { // theirs answers nobody, and keeps nobody waiting
			l.closeSink()
		}
	}
}

// renewSink (docs/decisions/002) puts a fresh socket in the sink's place and closes the old one. The
// kernel then hands what had waited there to the current generation; so does
// a client that came before the first generation was ready get its answer.
func (s *BPF) renewSink(l *listener) error {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	first := l.sink.FD < 0
	fresh, err := l.joinGroup(first, s.mark)
	if first && errors.Is(err, unix.EADDRINUSE) {
		// The group exists: an earlier supervisor's generation lives. Its
		// program steers until ours takes its place.
		fresh, err = l.joinGroup(false, s.mark)
	}
	if err != nil {
		return fmt.Errorf("sink of listener %s: %w", l.name, err)
	}
	if l.open {
		err = l.group.SetSink(fresh.FD)
	}
	if err != nil {
		fresh.close()
		return err
	}
	s.sinks.Store(fresh.Cookie, nil)
	if !first {
		s.sinks.Delete(l.sink.Cookie)
		l.countSink()
		l.sink.close()
	}
	l.sink = fresh
	return nil
}

// joinGroup makes a listening socket with the program on its group. The first of
// a group gets the program before it listens, so that no packet is ever hashed
// over the members. A later one must not: the kernel takes a socket that has a
// program of its own for another group and answers EADDRINUSE
// (inet_csk_bind_conflict, net/ipv4/inet_connection_sock.c).
func (l *listener) joinGroup(first bool, mark func(Socket)) (Socket, error) {
	s, err := bind(l.conf, true)
	if err != nil {
		return Socket{}, err
	}
	if first {
		err = l.group.Attach(s.FD)
	}
	if err == nil {
		mark(s)
		err = s.listen(l.conf.Backlog)
	}
	if err == nil && !first {
		err = l.group.Attach(s.FD)
	}
	if err != nil {
		s.close()
		return Socket{}, err
	}
	return s, nil
}

func (l *listener) currentSink() Socket {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	return l.sink
}

func (l *listener) closeSink() {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	if l.sink.FD >= 0 {
		l.countSink()
		l.sink.close()
		l.sink.FD = -1
	}
}

// EmptySinks hands what waits in sinks to the current generation.
func (s *BPF) EmptySinks() error {
	if !s.attach {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(s.listeners), func(l *listener) bool { return l.udp }) // nothing waits in theirs
	sinks := make(Sockets, len(all))
	for _, l := range all {
		sinks[l.address] = append(sinks[l.address], l.currentSink())
	}
	queued, err := s.Queued(sinks)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range all {
		if q := queued[l.currentSink().Cookie]; q.HalfOpen+q.ToAccept > 0 {
			errs = append(errs, s.renewSink(l))
		}
	}
	return errors.Join(errs...)
}

// silence makes a listener's sink: a socket that no datagram enters and that
// answers none.
func silence(l *listener) (err error) {
	s, err := bindUDP(l.conf, true)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// One instruction of classic BPF: keep 0 octets, that is none. The kernel then
	// drops a datagram as if its checksum were wrong.
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(s.FD, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
		return fmt.Errorf("sink of listener %s: attach a filter: %w", l.name, err)
	}
	if err := l.group.Attach(s.FD); err != nil {
		return err
	}
	if l.open {
		if err := l.group.SetSink(s.FD); err != nil {
			return err
		}
	}
	l.sink = s
	return nil
}
