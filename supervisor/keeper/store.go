package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/contract"
)

// store is the service manager's store of descriptors (FDSTORE= of sd_notify(3)): it has
// a copy of what this keeper holds, and gives it to the next one, should this one be
// killed (docs/decisions/051).
//
// Its own goroutine makes the store what it should be. So a manager that is busy, as
// systemd is while it reads its units again, keeps nobody waiting for longer than
// [storeTimeout].
type store struct {
	conn  *net.UnixConn // the manager's socket
	told  func(error)   // of a store that is not what it should be; nil: it is again
	index *index
	wake  chan struct{}
	full  bool // at the last round

	mu      *sync.Mutex
	table   *table          // what it should be
	waiting []chan struct{} // of who waits for the end of the next round
}

// storeTimeout bounds the wait for the manager, below a client's patience. What it has
// not done by then it does later.
var storeTimeout = 500 * time.Millisecond

// errFull says that a part of what is held is not in the store.
var errFull = errors.New("the service manager's store of descriptors has no room (FileDescriptorStoreMax=): what is not in it is lost with this process")

// openStore finds the store of the manager that has started this process, and puts what
// an earlier keeper has left there into the table, which mu guards. nil: there is no
// manager.
func openStore(mu *sync.Mutex, t *table, told func(error)) (*store, error) {
	path := os.Getenv(contract.EnvNotifySocket)
	if path == "" {
		return nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("the service manager: %w", err)
	}
	s := &store{conn: conn, told: told, wake: make(chan struct{}, 1), mu: mu, table: t}
	if err := s.recover(); err != nil {
		conn.Close()
		return nil, err
	}
	go s.run()
	s.ask()
	return s, nil
}

// recover takes what the manager has passed (sd_listen_fds(3)). What has no name there
// had not been put, or had been dropped, when its keeper was killed.
func (s *store) recover() (err error) {
	t := s.table
	passed := map[uint64]*file{}
	for name, fd := range listenFDs() {
		unix.CloseOnExec(fd)
		if name == storedIndex {
			s.index = &index{fd: fd}
		} else if number, err := strconv.ParseUint(name, 10, 64); err == nil {
			passed[number] = t.add(fd, number)
			passed[number].sent, passed[number].stored = true, true
		} else {
			unix.Close(fd) // a probe
			s.remove(name)
		}
	}
	if s.index == nil {
		if s.index, err = newIndex(); err != nil {
			return err
		}
		if err := s.put(storedIndex, s.index.fd); err != nil {
			return err
		}
	} else if names, err := s.index.read(); err != nil {
		s.told(err)
	} else {
		for name, number := range names {
			if f := passed[number]; f != nil {
				f.names++
				t.names[name] = f
			}
		}
	}
	for _, f := range passed {
		if f.names == 0 {
			t.remove(f)
		}
	}
	return nil
}

// listenFDs are the descriptors that a manager has passed, by their names there.
func listenFDs() map[string]int {
	all := map[string]int{}
	n, err := strconv.Atoi(os.Getenv(contract.EnvListenFDs))
	if err != nil || os.Getenv(contract.EnvListenPID) != strconv.Itoa(os.Getpid()) {
		return all
	}
	for i, name := range strings.Split(os.Getenv(contract.EnvListenFDNames), ":") {
		if i < n {
			all[name] = contract.FirstFD + i
		}
	}
	return all
}

// ask has the store become what the table is. The channel is closed when it was tried.
// mu is held.
func (s *store) ask() <-chan struct{} {
	done := make(chan struct{})
	s.waiting = append(s.waiting, done)
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
	return done
}

func (s *store) run() {
	var failed error
	for range s.wake {
		err := s.round()
		if !errors.Is(err, failed) {
			s.told(err)
		}
		if failed = err; err != nil && !errors.Is(err, errFull) { // there may be room when something is dropped
			time.AfterFunc(time.Second, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.ask()
			})
		}
	}
}

// round makes the store what the table is now, and returns when the manager has done it.
func (s *store) round() error {
	s.mu.Lock()
	waiting, gone := s.waiting, s.table.gone
	s.waiting, s.table.gone = nil, nil
	names := make(map[string]uint64, len(s.table.names))
	add := map[*file]int{} // copies: what is dropped meanwhile is closed
	if len(gone) > 0 {
		s.full = false // there may be room
	}
	var err error
	for name, f := range s.table.names {
		names[name] = f.number
		if _, twice := add[f]; !f.stored && !twice && !s.full {
			var fd int
			if fd, err = unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				break
			}
			add[f], f.sent = fd, true
		}
	}
	s.mu.Unlock()
	if err == nil {
		err = s.write(names, gone, add)
	}
	if s.full = s.full || errors.Is(err, errFull); s.full && err == nil {
		err = errFull
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for f, fd := range add {
		unix.Close(fd)
		f.stored = err == nil
	}
	if err != nil && !s.full { // else the manager has done it
		s.table.gone = append(s.table.gone, gone...)
	}
	for _, done := range waiting {
		close(done)
	}
	return err
}

// write tells the manager what to let go of and what to take. The names come first: of
// what the store then has, or has still, it counts only what has one.
func (s *store) write(names map[string]uint64, gone []uint64, add map[*file]int) error {
	if err := s.index.write(names); err != nil {
		return err
	}
	for _, number := range gone {
		if err := s.remove(strconv.FormatUint(number, 10)); err != nil {
			return err
		}
	}
	for f, fd := range add {
		if err := s.put(strconv.FormatUint(f.number, 10), fd); err != nil {
			return err
		}
	}
	if len(add) == 0 {
		return s.barrier()
	}
	// A manager without room closes what it is given, without a word. So the last it is
	// given is the end of a pipe, of which one sees whether it has been closed.
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	err := s.put(storedProbe, pipe[1])
	unix.Close(pipe[1])
	if err == nil {
		err = s.barrier()
	}
	if err != nil {
		return err
	}
	if closed(pipe[0], 0) {
		return errFull
	}
	return s.remove(storedProbe)
}

// put gives the manager a copy of a descriptor, to keep whatever becomes of it (FDPOLL=).
func (s *store) put(name string, fd int) error {
	return s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
}

func (s *store) remove(name string) error { return s.send("FDSTOREREMOVE=1\nFDNAME="+name, -1) }

func (s *store) send(text string, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	// Not WriteMsgUnix, which wants an address from who has none for each datagram.
	var sendErr error
	err = raw.Write(func(socket uintptr) (done bool) {
		sendErr = unix.Sendmsg(int(socket), []byte(text), rights, nil, 0)
		return !errors.Is(sendErr, unix.EAGAIN) // the manager has enough for now
	})
	return errors.Join(err, sendErr)
}

// barrier returns when the manager has done all it was told: it closes what it is given
// with BARRIER=1 then.
func (s *store) barrier() error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	err := s.send("BARRIER=1", pipe[1])
	unix.Close(pipe[1])
	for err == nil && !closed(pipe[0], time.Minute) {
	}
	return err
}

// closed waits until nobody has the other end of a pipe, or for a time.
func closed(fd int, within time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, int(within.Milliseconds()))
	return err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0
}
