package ledger

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// seals keep the size: memory that a shorter file no longer backs would end its
// reader by SIGBUS.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Options say whose ledger it is.
type Options struct {
	Generation uint64
	ServerID   uint32
	Listeners  []string // names, in the order of the configuration
	Routes     []string
	// Shards is into how many parts the counters are split, so that processors
	// do not wait for each other's. Defaults to what the machine can use.
	Shards int
}

// Create makes the pages of a generation. Close frees them.
func Create(o Options) (*Ledger, error) {
	s := shape{o.Generation, o.ServerID, o.Shards, slices.Clone(o.Listeners), slices.Clone(o.Routes)}
	if s.shards == 0 {
		s.shards = min(max(4, 2*runtime.NumCPU()), maxShards)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("make the ledger of generation %d: %w", o.Generation, err)
	}
	fd, err := unix.MemfdCreate("baton-ledger", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make the ledger's memfd: %w", err)
	}
	l := s.layout()
	err = unix.Ftruncate(fd, int64(l.size)*8)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err == nil {
		err = s.write(fd, l)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the ledger's memfd: %w", err)
	}
	return newLedger(fd, s)
}

// write puts down what the supervisor knows: the header and the names.
func (s *shape) write(fd int, l layout) error {
	mem, err := unix.Mmap(fd, 0, l.flows*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	copy(mem[l.names*8:], s.text())
	h := words(mem)
	for at, v := range s.header(l) {
		h[at].Store(v)
	}
	h[hWallOffset].Store(uint64(time.Now().UnixNano() - monotonic()))
	return nil
}

// text is the names, each with a zero byte after it.
func (s *shape) text() []byte {
	var b []byte
	for _, names := range [][]string{s.listeners, s.routes} {
		for _, name := range names {
			b = append(append(b, name...), 0)
		}
	}
	return b
}

// header is the words that never change.
func (s *shape) header(l layout) map[int]uint64 {
	return map[int]uint64{
		hMagic: magic, hVersion: Version, hSize: uint64(l.size) * 8,
		hGeneration: s.generation, hServerID: uint64(s.serverID), hShards: uint64(s.shards),
		hListeners: uint64(len(s.listeners)), hRoutes: uint64(len(s.routes)), hNameBytes: uint64(len(s.text())),
	}
}

// mapWhole maps the ledger behind a memfd and reads its shape from it. It
// refuses all that this package has not made.
func mapWhole(fd, protection int) (mem []byte, s shape, err error) {
	if have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || have&seals != seals {
		return nil, s, fmt.Errorf("descriptor %d is no sealed memfd", fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, s, err
	}
	if st.Size < 8*pageWords || st.Size > 1<<40 {
		return nil, s, fmt.Errorf("%d bytes are no ledger", st.Size)
	}
	if mem, err = unix.Mmap(fd, 0, int(st.Size), protection, unix.MAP_SHARED); err != nil {
		return nil, s, err
	}
	if s, err = readShape(mem); err != nil {
		unix.Munmap(mem)
		return nil, s, err
	}
	return mem, s, nil
}

func readShape(mem []byte) (s shape, err error) {
	h := words(mem)
	if m := h[hMagic].Load(); m != magic {
		return s, fmt.Errorf("its magic is %#x, not a ledger's", m)
	}
	if v := h[hVersion].Load(); v != Version {
		return s, fmt.Errorf("it has layout %d, this build knows layout %d", v, Version)
	}
	shards, listeners, routes, nameBytes := h[hShards].Load(), h[hListeners].Load(), h[hRoutes].Load(), h[hNameBytes].Load()
	if shards > maxShards || listeners > maxListeners || routes > maxRoutes || nameBytes > maxNameBytes ||
		8*pageWords+int(nameBytes) > len(mem) {
		return s, errors.New("its header does not fit")
	}
	s.generation, s.serverID, s.shards = h[hGeneration].Load(), uint32(h[hServerID].Load()), int(shards)
	names := strings.SplitAfter(string(mem[8*pageWords:8*pageWords+int(nameBytes)]), "\x00")
	names = names[:len(names)-1] // what follows the last zero byte is none
	for i := range names {
		names[i] = strings.TrimSuffix(names[i], "\x00")
	}
	if len(names) != int(listeners+routes) {
		return s, errors.New("its names are not as many as its header says")
	}
	s.listeners, s.routes = names[:listeners], names[listeners:]
	if err := s.check(); err != nil {
		return s, err
	}
	if l := s.layout(); l.size*8 != len(mem) || h[hSize].Load() != uint64(len(mem)) {
		return s, fmt.Errorf("it has %d bytes, its header speaks of %d", len(mem), s.layout().size*8)
	}
	return s, nil
}

// monotonic is the reading of CLOCK_MONOTONIC, ns.
func monotonic() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
