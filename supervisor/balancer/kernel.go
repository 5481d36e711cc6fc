package balancer

import "net/netip"

// Kernel is what the balancer's program reads, and where it hangs. [bpf/xdp] has
// the real one; tests have one that remembers.
type Kernel interface {
	// Held is what the tables hold: at a start what the process before has left.
	Held() (Tables, error)
	// SetReal and DeleteReal write a real's entry. Packets whose real has none, or
	// one that is down, are treated as if nothing had named it.
	SetReal(index uint32, r Real) error
	DeleteReal(index uint32) error
	// Forget takes out what the connection table remembers of an index, before
	// another real gets it.
	Forget(index uint32) error
	// SetServerID says which real an id names.
	SetServerID(id, index uint32) error
	DeleteServerID(id uint32) error
	// SetRings replaces whole rings. No packet sees a part of one.
	SetRings(rings map[uint32][]uint32) error
	DeleteRing(ring uint32) error
	SetVIP(v VIP, to VIPEntry) error
	DeleteVIP(v VIP) error
	// Explain runs the program on a packet, from its IP header on, without effect.
	Explain(packet []byte) (Explanation, error)
	// Counted is what the program has counted since its maps were made.
	Counted() (Counts, error)
}

// Explanation is what the program would do with a packet.
type Explanation struct {
	Verdict, Reason string
	Beside          []string
	Index           uint32 // of the real. 0: none
}

// Counts is what the program has counted.
type Counts struct {
	VIPs  map[VIP]VIPCounts
	Reals map[uint32]RealCounts
	// Others are packets that were nobody's, by reason.
	Others map[string]uint64
}

// VIPCounts is what has become of a VIP's packets.
type VIPCounts struct {
	// Reasons has each packet once, and beside it what else has happened.
	Reasons       map[string]uint64
	Octets, Local uint64 // of frames sent, and of those left to this host
}

// RealCounts is what a real has got.
type RealCounts struct{ Packets, Octets, Flows uint64 }

// Real is a real as the program sees it.
type Real struct {
	Addr    netip.Addr
	MAC     [6]byte // zeros: the program asks the kernel's own tables
	Ifindex int
	// Local means that the address is this host's own: its packets pass.
	Local bool
	// Down reals get nothing.
	Down bool
	// Drained is of no meaning to the program: the next process finds it here.
	Drained bool
}

// VIP is what the program looks a packet's destination up by.
type VIP struct {
	Addr netip.Addr
	Port uint16 // 0: every port
	UDP  bool
}

// VIPEntry is what it finds.
type VIPEntry struct {
	Ring            uint32
	QUIC, KatranIDs bool
}

// Tables is everything that the control plane writes. Of rings it says in short
// what they were made of.
type Tables struct {
	Reals     map[uint32]Real
	ServerIDs map[uint32]uint32
	VIPs      map[VIP]VIPEntry
	Rings     map[uint32][]Share
}

func newTables() Tables {
	return Tables{map[uint32]Real{}, map[uint32]uint32{}, map[VIP]VIPEntry{}, map[uint32][]Share{}}
}

// Share is a real's part of a ring.
type Share struct {
	Index, Weight uint32
}
