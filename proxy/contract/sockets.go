package contract

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Passed are the sockets of a generation by the listener's name: one a worker, in
// the order of the descriptors.
type Passed struct {
	TCP map[string][]net.Listener
	UDP map[string][]*net.UDPConn // bound; passed as NAME.udp
}

// Close closes them all.
func (p Passed) Close() {
	for _, workers := range p.TCP {
		for _, ln := range workers {
			ln.Close()
		}
	}
	for _, workers := range p.UDP {
		for _, c := range workers {
			c.Close()
		}
	}
}

// Sockets takes the sockets that were passed to this process. Without LISTEN_FDS
// there are none.
//
// It can be called once: the variables are removed from the environment and
// the descriptors closed in favour of the listeners, so that no child inherits
// either. Anything out of order is an error: half a set of sockets would lose
// the connections of the others. The caller then exits, which closes the rest.
func Sockets() (Passed, error) {
	pid, count, names := os.Getenv(EnvListenPID), os.Getenv(EnvListenFDs), os.Getenv(EnvListenFDNames)
	for _, name := range []string{EnvListenPID, EnvListenFDs, EnvListenFDNames} {
		os.Unsetenv(name)
	}
	if count == "" {
		return Passed{}, nil
	}
	if pid != strconv.Itoa(os.Getpid()) {
		// The descriptors belong to whoever has that number: leave them alone.
		return Passed{}, fmt.Errorf("%s is %q, but this process is %d", EnvListenPID, pid, os.Getpid())
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return Passed{}, fmt.Errorf("%s is %q, not a number of descriptors", EnvListenFDs, count)
	}
	if n == 0 {
		return Passed{}, nil
	}
	byName := strings.Split(names, ":")
	if len(byName) != n {
		return Passed{}, fmt.Errorf("%s has %d names for %d descriptors", EnvListenFDNames, len(byName), n)
	}

	sockets := Passed{TCP: make(map[string][]net.Listener), UDP: make(map[string][]*net.UDPConn)}
	var errs []error
	for i := range n {
		fd, name := FirstFD+i, byName[i]
		if err := sockets.take(fd, name); err != nil {
			errs = append(errs, fmt.Errorf("descriptor %d (%s): %w", fd, name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		sockets.Close()
		return Passed{}, err
	}
	return sockets, nil
}

func (p Passed) take(fd int, name string) error {
	if name, datagrams := strings.CutSuffix(name, UDPSuffix); datagrams {
		c, err := udpFrom(fd)
		if err == nil {
			p.UDP[name] = append(p.UDP[name], c)
		}
		return err
	}
	ln, err := listenerFrom(fd)
	if err == nil {
		p.TCP[name] = append(p.TCP[name], ln)
	}
	return err
}

// udpFrom turns fd into a connection that owns a duplicate, and closes fd. What is
// no UDP socket it leaves alone.
func udpFrom(fd int) (*net.UDPConn, error) {
	switch protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); {
	case err != nil:
		return nil, fmt.Errorf("not a socket: %w", err)
	case protocol != unix.IPPROTO_UDP:
		return nil, errors.New("not a UDP socket")
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// listenerFrom turns fd into a listener that owns a duplicate, and closes fd. What
// is no listening socket it leaves alone: it may belong to the Go runtime.
func listenerFrom(fd int) (net.Listener, error) {
	// Asked first, since net.FileListener accepts any stream socket and the
	// mistake would show at the first accept only.
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("not a socket: %w", err)
	}
	if listening == 0 {
		return nil, errors.New("not a listening socket")
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	return net.FileListener(f)
}

// ReadConfig returns the configuration the supervisor passed, or nil if it
// passed none. It can be called once, as [Sockets].
func ReadConfig() ([]byte, error) {
	f, err := fileFrom(EnvConfigFD)
	if f == nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", EnvConfigFD, err)
	}
	// By position: the offset is shared with whoever else holds the memfd.
	text := make([]byte, info.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		return nil, fmt.Errorf("read %s: %w", EnvConfigFD, err)
	}
	return text, nil
}

// Keys returns the memfd with the keys that generations share, or nil if the
// supervisor passed none. It can be called once, as [Sockets]; the caller closes
// the file.
func Keys() (*os.File, error) { return fileFrom(EnvKeysFD) }

// Ledger returns the memfd for the generation's account, or nil if the supervisor
// passed none. It can be called once, as [Sockets]; the caller closes the file.
func Ledger() (*os.File, error) { return fileFrom(EnvLedgerFD) }

// fileFrom takes the descriptor that a variable names; nil if it is not set.
func fileFrom(variable string) (*os.File, error) {
	value := os.Getenv(variable)
	os.Unsetenv(variable)
	if value == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < FirstFD {
		return nil, fmt.Errorf("%s is %q, not a descriptor", variable, value)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), variable), nil
}

// GenerationID is the number of this generation, 0 if the supervisor gave none.
func GenerationID() (uint64, error) {
	value := os.Getenv(EnvGenerationID)
	if value == "" {
		return 0, nil
	}
	id, err := strconv.ParseUint(value, 10, 64)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("%s is %q, not a generation", EnvGenerationID, value)
	}
	return id, nil
}

// ServerID is the number that every router on the way finds this node by, 0 if
// the supervisor gave none.
func ServerID() (uint32, error) {
	id, err := number(EnvServerID, 32)
	return uint32(id), err
}

// Slot is the generation's place in the node's tables, 0 if the supervisor gave
// none.
func Slot() (uint8, error) {
	slot, err := number(EnvSlot, 8)
	return uint8(slot), err
}

func number(variable string, bits int) (uint64, error) {
	value := os.Getenv(variable)
	if value == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(value, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%s is %q, not a number of %d bits", variable, value, bits)
	}
	return n, nil
}
