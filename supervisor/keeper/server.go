package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/contract"
)

// Serve keeps descriptors for whoever asks at the Unix socket path, until it is
// told to quit. It refuses a path where another keeper answers.
func Serve(path string) error { return serve(path, func(*server) error { return nil }) }

// ServeStored is Serve for a service: it keeps a copy of everything with the service
// manager, takes back what a keeper that was killed has left there, and says when it is
// ready. told hears of a manager that does not keep what it should; nil: it does again.
func ServeStored(path string, told func(error)) error {
	return serve(path, func(s *server) (err error) {
		if s.store, err = openStore(&s.mu, s.table, told); err != nil {
			return err
		}
		return contract.Notify(context.Background(), "READY=1")
	})
}

// serve is Serve that calls begin when it listens.
func serve(path string, begin func(*server) error) error {
	c, err := net.DialUnix("unixpacket", nil, address(path))
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%w at %s", ErrAnswers, path)
	case !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("a keeper listens at %s already: %w", path, err) // and has no time
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Nobody else may even connect; trusted asks again.
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unixpacket", address(path))
	unix.Umask(old)
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // quit does
	s := &server{table: newTable(), listener: l}
	if err := begin(s); err != nil {
		l.Close()
		return err
	}
	// What is held must not end because one connection cannot be had, for want of
	// descriptors or memory.
	for pause := minPause; ; {
		c, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil // told to quit
		case err != nil:
			time.Sleep(pause)
			pause = min(2*pause, maxPause)
		default:
			pause = minPause
			go s.answer(c)
		}
	}
}

// The pauses of a keeper that cannot accept.
const (
	minPause = time.Millisecond
	maxPause = 100 * time.Millisecond
)

// sendTimeout bounds the sending of an answer, during which nobody else is answered.
// It is below a client's patience.
const sendTimeout = time.Second

func address(path string) *net.UnixAddr { return &net.UnixAddr{Name: path, Net: "unixpacket"} }

type server struct {
	listener *net.UnixListener

	store *store // nil: there is none

	mu    sync.Mutex
	table *table
	quit  bool // nobody is answered any more
}

func (s *server) answer(c *net.UnixConn) {
	defer c.Close()
	if !trusted(c) {
		return
	}
	for {
		m, fds, err := receive(c)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			send(c, message{Error: err.Error()}, nil)
			return
		}
		if err := s.do(c, m, fds); err != nil {
			return
		}
	}
}

// do answers one request. An error ends the connection.
func (s *server) do(c *net.UnixConn, m message, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quit {
		closeAll(fds)
		return net.ErrClosed
	}
	switch {
	case m.Op == "put" && len(m.Names) == len(fds):
		for i, name := range m.Names {
			s.table.put(name, fds[i])
		}
		if s.store != nil {
			s.store.ask() // and nobody waits: what was sent arrives, whoever dies
		}
		return s.send(c, message{}, nil)
	case m.Op == "drop" && len(fds) == 0:
		for _, name := range m.Names {
			s.table.drop(name)
		}
		if len(m.Names) > 0 {
			s.awaitStore()
		}
		return s.send(c, message{}, nil)
	case m.Op == "all" && len(fds) == 0:
		return s.all(c)
	case m.Op == "quit" && len(fds) == 0:
		s.quit = true
		for name := range s.table.names {
			s.table.drop(name)
		}
		s.awaitStore()
		os.Remove(s.listener.Addr().String()) // before who asked goes on: another may listen there then
		err := s.send(c, message{}, nil)
		s.listener.Close() // ends Serve
		return err
	}
	closeAll(fds)
	return s.send(c, message{Error: fmt.Sprintf("%q with %d names and %d descriptors is no request", m.Op, len(m.Names), len(fds))}, nil)
}

// awaitStore returns when the store is what the table was, or after storeTimeout. s.mu is
// not held meanwhile.
func (s *server) awaitStore() {
	if s.store == nil {
		return
	}
	done := s.store.ask()
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-done:
	case <-time.After(storeTimeout):
	}
}

// send answers. s.mu is held, and nobody else is answered meanwhile.
func (s *server) send(c *net.UnixConn, m message, fds []int) error {
	c.SetWriteDeadline(time.Now().Add(sendTimeout))
	m.Managed = s.store != nil
	return send(c, m, fds)
}

func (s *server) all(c *net.UnixConn) error {
	names := slices.Sorted(maps.Keys(s.table.names))
	for part := range slices.Chunk(names, batch) {
		fds := make([]int, len(part))
		for i, name := range part {
			fds[i] = s.table.names[name].fd
		}
		if err := s.send(c, message{Names: part, More: true}, fds); err != nil {
			return err
		}
	}
	return s.send(c, message{}, nil)
}
