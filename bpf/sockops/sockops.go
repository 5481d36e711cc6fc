// Package sockops carries the number of a node in a TCP option: the server's node
// tells it in its SYN-ACK (kind 0xB6), the client's node writes it into every
// later segment (kind 0xB7). A balancer that finds it needs no memory of the
// connection. Kinds and lengths are those of Katran, whose nodes understand ours.
//
// What was measured, on Linux 6.18, and what follows:
//
//   - sockops runs for a half-open connection in the cgroup in which its listener
//     was made, and for a connection in the one in which its socket was made. So
//     the [Server] belongs to the supervisor's cgroup and the [Client] to those of
//     the generations.
//   - The program cannot reach the listener of a half-open connection. Its network
//     namespace it can: a node is one network stack, with one number.
//   - A connection inherits the callbacks that its listener has asked for. The
//     program takes them back when the handshake has finished, so that segments of
//     a server's connections run nothing.
//   - The SYN-ACK can be read when the connection is established on the client's
//     side; no callback for unknown options is needed.
//   - The kernel counts what is reserved for an option when it computes the size of
//     a segment's payload (tcp_current_mss, net/ipv4/tcp_output.c).
//
// Segments without a socket that could write carry none: those that the kernel
// sends in TIME_WAIT and the resets it sends for nobody; nor does a SYN-ACK of TCP
// Fast Open, whose connection is established before it.
package sockops

//go:generate go tool bpf2go -target bpfel -type event sockops sockops.c -- -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/internal/pinned"
)

// The option. Its length counts the two octets before the number.
const (
	KindAnswer = 0xB6 // of a server's node, in its SYN-ACK
	KindEcho   = 0xB7 // of a client's node, in every segment after that
	OptionLen  = 6
)

// Event is something that is counted.
type Event int

// The events, in the order of the counters.
const (
	Answered   = Event(sockopsEventEVENT_ANSWERED)    // SYN-ACKs that carry the number
	AnswerFull = Event(sockopsEventEVENT_ANSWER_FULL) // SYN-ACKs without, for want of room
	Learned    = Event(sockopsEventEVENT_LEARNED)     // connections whose server told its number
	Untold     = Event(sockopsEventEVENT_UNTOLD)      // connections whose server told none
	Echoed     = Event(sockopsEventEVENT_ECHOED)      // headers that carry the server's number: a train of segments has one
	EchoFull   = Event(sockopsEventEVENT_ECHO_FULL)   // headers without, for want of room
	Events     = int(sockopsEventEVENTS)
)

// String is the event as it stands in metrics.
func (e Event) String() string {
	return [...]string{"answered", "answer_full", "learned", "untold", "echoed", "echo_full"}[e]
}

// Counts are numbers of events.
type Counts [Events]uint64

// Options say what a node writes.
type Options struct {
	// ServerID is the number of this node, never 0.
	ServerID uint32
	// HostOrder writes it as a little-endian machine holds it, for fleets whose
	// routers read it so. The default is network order.
	HostOrder bool
	// Dir is a directory of a BPF file system below which everything is pinned, in
	// sockops-v1: programs and counters outlive this process. Empty: nowhere.
	Dir string
}

// wire is the number as a little-endian program holds what stands on the wire.
func (o Options) wire() uint32 {
	var b [4]byte
	if o.HostOrder {
		binary.LittleEndian.PutUint32(b[:], o.ServerID)
	} else {
		binary.BigEndian.PutUint32(b[:], o.ServerID)
	}
	return binary.LittleEndian.Uint32(b[:])
}

// Programs are both halves, loaded. Its methods may be called from any goroutine.
type Programs struct {
	dir  string
	objs sockopsObjects
	link link.Link // of the server's half; nil: not attached
}

// layout names the pinned maps' version, as in package reuseport.
const layout = "sockops-v1"

// Open loads both halves for the network namespace of the calling thread and
// attaches neither.
func Open(o Options) (*Programs, error) {
	netns, err := netnsCookie()
	if err != nil {
		return nil, fmt.Errorf("read the cookie of the network namespace: %w", err)
	}
	spec, err := loadSockops()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(spec.Variables["wire_id"].Set(o.wire()), spec.Variables["netns"].Set(netns)); err != nil {
		return nil, err
	}
	p := new(Programs)
	var with ebpf.CollectionOptions
	if p.dir, with, err = pinned.Maps(o.Dir, layout, spec, sockopsMapEvents, sockopsMapTellers, sockopsMapTold); err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&p.objs, &with); err != nil {
		return nil, fmt.Errorf("load sockops: %w", err)
	}
	return p, nil
}

// Serve attaches the server's half to the cgroup whose directory is given, beside
// any that others have attached there. It runs for sockets that are made there
// and told by [Programs.Tell]. A link that an earlier process has pinned is taken
// over: its listeners never answer without.
func (p *Programs) Serve(cgroup string) (err error) {
	if p.link, err = pinned.Attach(p.dir, cgroup, ebpf.AttachCGroupSockOps, p.objs.Server); err != nil {
		return fmt.Errorf("attach sockops to %s: %w", cgroup, err)
	}
	return nil
}

// Tell makes a socket that does not listen yet, on a cgroup with the server's
// half, tell the node's number to each client from its first SYN-ACK on. It ends
// with the socket.
func (p *Programs) Tell(fd int) error {
	if err := p.objs.Tellers.Put(int32(fd), uint32(1)); err != nil {
		return fmt.Errorf("make a listening socket tell the node's number: %w", err)
	}
	return nil
}

// Echo attaches the client's half to a cgroup, given as its opened directory: what
// is dialled there from now on carries the number of a server that tells it. It
// stays as long as the cgroup and its connections do, whatever becomes of this
// process.
func (p *Programs) Echo(cgroup *os.File) error {
	// No link: one would end with its descriptor, or need a pin to be cleared away.
	err := link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(cgroup.Fd()), Program: p.objs.Client, Attach: ebpf.AttachCGroupSockOps, Flags: unix.BPF_F_ALLOW_MULTI,
	})
	if err != nil {
		return fmt.Errorf("attach sockops to %s: %w", cgroup.Name(), err)
	}
	return nil
}

// Counts reads the events, summed over CPUs. Counters only rise.
func (p *Programs) Counts() (sum Counts, err error) {
	for e := range sum {
		var perCPU []uint64
		if err := p.objs.Events.Lookup(uint32(e), &perCPU); err != nil {
			return sum, fmt.Errorf("read the events of sockops: %w", err)
		}
		for _, n := range perCPU {
			sum[e] += n
		}
	}
	return sum, nil
}

// Close gives back what this process holds. Without pins listeners tell the number
// no more; with them they go on.
func (p *Programs) Close() error {
	var err error
	if p.link != nil {
		err = p.link.Close()
	}
	return errors.Join(err, p.objs.Close())
}

// Unpin ends the server's half and removes the pins, those of earlier processes too.
func (p *Programs) Unpin() error {
	var err error
	if p.link != nil {
		// Without it the link would live on until the kernel has freed the inode of the pin.
		err = p.link.Detach()
	}
	if p.dir == "" {
		return err
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// Unpin removes what an earlier process has pinned below a directory. Its listeners
// tell the number no more; what has learned one goes on.
func Unpin(dir string) error {
	if dir == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, layout))
}

// netnsCookie is the kernel's name for the calling thread's network namespace
// (SO_NETNS_COOKIE, since Linux 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
