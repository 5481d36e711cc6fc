package balancer

import "github.com/baton-mesh/baton/bpf/xdp"

// Kernel is what the balancer's program reads, and where it hangs. [bpf/xdp] has
// the real one; tests have one that remembers.
type Kernel interface {
	// Held is what the tables hold: at a start what the process before has left.
	Held() (Tables, error)
	// SetReal and DeleteReal write a real's entry. Packets whose real has none, or
	// one that is down, are treated as if nothing had named it. What the connection
	// table remembers of a place ends with DeleteReal, whoever gets it next.
	SetReal(index uint32, r Real) error
	DeleteReal(index uint32) error
	// SetServerID says which real an id names.
	SetServerID(id, index uint32) error
	DeleteServerID(id uint32) error
	// SetRings replaces whole rings. No packet sees a part of one. fill writes one into
	// a table, on several goroutines.
	SetRings(ids []uint32, fill func(id uint32, table []uint32)) error
	DeleteRing(ring uint32) error
	SetVIP(v VIP, to VIPEntry) error
	DeleteVIP(v VIP) error
	// Explain runs the program on a packet, from its IP header on, without effect.
	Explain(packet []byte) (Explanation, error)
	// Counted is what the program has counted since its maps were made.
	Counted() (Counts, error)
}

// What passes between the two is said once, by the kernel half.
type (
	Real        = xdp.Real
	VIP         = xdp.VIP
	VIPEntry    = xdp.VIPEntry
	Explanation = xdp.Explanation
	Counts      = xdp.Counts
)

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
