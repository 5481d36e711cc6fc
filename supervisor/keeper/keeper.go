// Package keeper holds descriptors for a supervisor that may die.
//
// The keeper is a process of its own that does nothing but keep them under their
// names, and gives them to whoever asks as root or as its own user. So the queue of
// a listening socket, the pages of a ledger and an opened binary live on while
// there is no supervisor. It is small, and need not change when the supervisor does
// (docs/decisions/015).
//
// A message is one packet on a Unix socket: a [message] as JSON, and with it the
// descriptors it names, in their order. Requests are answered in turn.
package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Version is the protocol's. Requests of another are refused in words.
const Version = 1

// ErrProtocol says that the other end speaks another version.
var ErrProtocol = errors.New("the keeper and its owner are of different versions")

// ErrAnswers says that there is a keeper already.
var ErrAnswers = errors.New("a keeper answers")

// batch is how many descriptors one message carries; the kernel takes 253
// (SCM_MAX_FD, include/net/scm.h).
const batch = 128

// maxMessage bounds a packet: the names of a batch, with room.
const maxMessage = 64 << 10

type message struct {
	Version int      `json:"version"`
	Op      string   `json:"op,omitempty"`      // of a request: put, drop, all, quit
	Names   []string `json:"names,omitempty"`   // a descriptor for each, but in drop
	Error   string   `json:"error,omitempty"`   // of an answer
	More    bool     `json:"more,omitempty"`    // another answer to the same request follows
	Managed bool     `json:"managed,omitempty"` // of an answer: a service manager starts the next one, should this one end
}

func send(c *net.UnixConn, m message, fds []int) error {
	m.Version = Version
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(text, rights, nil)
	return err
}

// receive reads one message. The descriptors are the caller's.
func receive(c *net.UnixConn) (m message, fds []int, err error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*batch))
	n, k, flags, _, err := c.ReadMsgUnix(text, rights)
	if err == nil && n == 0 {
		err = net.ErrClosed // the end of a connection, where no packet is empty
	}
	if err != nil {
		return m, nil, err
	}
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	controls, err := unix.ParseSocketControlMessage(rights[:k])
	if err != nil {
		return m, nil, err
	}
	for _, control := range controls {
		more, err := unix.ParseUnixRights(&control)
		if err != nil {
			return m, fds, err
		}
		for _, fd := range more {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, more...)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return m, fds, errors.New("a message too long")
	}
	if err := json.Unmarshal(text[:n], &m); err != nil {
		return m, fds, fmt.Errorf("a message that is none: %w", err)
	}
	if m.Version != Version {
		return m, fds, fmt.Errorf("%w: a message of protocol %d, this is %d", ErrProtocol, m.Version, Version)
	}
	return m, fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// trusted reports whether the other end may have descriptors.
func trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	raw.Control(func(fd uintptr) {
		peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid())
	})
	return ok
}

// processOf is a descriptor of the process at the other end of a connection that
// this one made. SO_PEERPIDFD (since Linux 6.5) names it for good; before, its
// number has to do, which is taken while it listens.
func processOf(c *net.UnixConn) (pidfd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		if pidfd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			return
		}
		var peer *unix.Ucred
		if peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pidfd, err = unix.PidfdOpen(int(peer.Pid), 0)
		}
	})
	return pidfd, errors.Join(controlErr, err)
}
