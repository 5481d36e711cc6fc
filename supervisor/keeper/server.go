package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Serve keeps descriptors for whoever asks at the Unix socket path, until it is
// told to quit. It refuses a path where another keeper answers.
func Serve(path string) error {
	c, err := net.DialUnix("unixpacket", nil, address(path))
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("a keeper answers at %s already", path)
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
	s := &server{held: map[string]int{}, listener: l}
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

	mu   sync.Mutex
	held map[string]int
	quit bool // nobody is answered any more
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
	c.SetWriteDeadline(time.Now().Add(sendTimeout))
	switch {
	case m.Op == "put" && len(m.Names) == len(fds):
		for i, name := range m.Names {
			if old, ok := s.held[name]; ok {
				unix.Close(old)
			}
			s.held[name] = fds[i]
		}
		return send(c, message{}, nil)
	case m.Op == "drop" && len(fds) == 0:
		for _, name := range m.Names {
			if fd, ok := s.held[name]; ok {
				unix.Close(fd)
				delete(s.held, name)
			}
		}
		return send(c, message{}, nil)
	case m.Op == "all" && len(fds) == 0:
		return s.all(c)
	case m.Op == "quit" && len(fds) == 0:
		s.quit = true
		os.Remove(s.listener.Addr().String()) // before who asked goes on: another may listen there then
		err := send(c, message{}, nil)
		s.listener.Close() // ends Serve
		return err
	}
	closeAll(fds)
	return send(c, message{Error: fmt.Sprintf("%q with %d names and %d descriptors is no request", m.Op, len(m.Names), len(fds))}, nil)
}

func (s *server) all(c *net.UnixConn) error {
	names := make([]string, 0, len(s.held))
	for name := range s.held {
		names = append(names, name)
	}
	slices.Sort(names)
	for part := range slices.Chunk(names, batch) {
		fds := make([]int, len(part))
		for i, name := range part {
			fds[i] = s.held[name]
		}
		if err := send(c, message{Names: part, More: true}, fds); err != nil {
			return err
		}
	}
	return send(c, message{}, nil)
}
