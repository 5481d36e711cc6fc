package demo

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Death is what a process owned at the moment it was killed.
type Death struct {
	PID int
	// Generation is the process's, 0 where the caller has not said.
	Generation int
	// At lies between the instant it was stopped and the one it was killed.
	At    time.Time
	flows map[Flow]struct{}

	datagrams map[Flow]struct{} // flows of UDP whose latest datagram was given to it
	readAt    time.Time         // when that was so, the process being gone
}

// Kill stops a generation of the supervisor, reads which connections to the
// servers it has accepted, and kills it. While it is stopped it accepts nothing
// and finishes nothing, so the list is exact.
func Kill(pid, supervisor int, servers ...netip.AddrPort) (_ *Death, err error) {
	p, err := OpenProcess(pid, supervisor)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := p.Stop(); err != nil {
		return nil, err
	}
	d := &Death{PID: pid, At: time.Now()}
	d.flows, err = accepted(pid, servers)
	// Whatever went wrong, a stopped process must not stay behind.
	if err := errors.Join(err, p.signal(unix.SIGKILL)); err != nil {
		return nil, fmt.Errorf("kill %d: %w", pid, err)
	}
	return d, nil
}

// Flows is how many connections the process owned.
func (d *Death) Flows() int { return len(d.flows) }

// Given takes the slot that the latest datagram of each flow of UDP was given to, read
// when the process was gone and nothing could be given to it any more. The process's
// are those of its slot: it may have been stopped already when the datagram came, and
// what its socket had queued is gone with it.
func (d *Death) Given(to map[Flow]int, slot int) {
	d.datagrams, d.readAt = make(map[Flow]struct{}), time.Now()
	for f, s := range to {
		if s == slot {
			d.datagrams[f] = struct{}{}
		}
	}
}

// Explains reports whether the operation failed because its connection was
// owned by the process that died. Of a connection of QUIC the kernel keeps no
// owner. One on which no generation had said that it answers is believed to have
// been the process's, if it was there before the death and failed after it.
func (d *Death) Explains(o Op) bool {
	if d == nil || !o.Failed() || !o.End.After(d.At) {
		return false
	}
	switch o.Kind {
	case UDP:
		_, given := d.datagrams[o.Flow]
		return given && o.Dialled.Before(d.readAt)
	case H3, H3New:
		return (o.Generation == 0 || o.Generation == d.Generation) && o.Dialled.Before(d.At)
	}
	_, owned := d.flows[o.Flow]
	return owned && o.Dialled.Before(d.At)
}

// accepted lists the connections to the servers of which the process has a
// descriptor. Those that still wait in an accept queue have none, and outlive it.
func accepted(pid int, servers []netip.AddrPort) (map[Flow]struct{}, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	owned := make(map[string]bool)
	for _, fd := range fds {
		// It is stopped, so the link stays; one that cannot be read is no socket of ours.
		link, _ := os.Readlink(filepath.Join(dir, fd.Name()))
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			owned[strings.TrimSuffix(inode, "]")] = true
		}
	}
	flows := make(map[Flow]struct{})
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without this family
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || !owned[fields[9]] {
				continue
			}
			local, err := parseAddress(fields[1])
			if err != nil {
				return nil, err
			}
			for _, s := range servers {
				if s != local {
					continue
				}
				client, err := parseAddress(fields[2])
				if err != nil {
					return nil, err
				}
				if client.Port() != 0 { // 0: the listening socket
					flows[Flow{Client: client, Server: local}] = struct{}{}
				}
			}
		}
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	return flows, nil
}

// parseAddress reads an address of /proc/net/tcp: 32-bit words as the machine
// keeps them, then the port.
func parseAddress(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address of /proc/net/tcp", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
