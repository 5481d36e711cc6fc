package judge

import (
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
)

// Reading is all that the gates look at, read at one moment.
type Reading struct {
	At        time.Time
	NoSlot    reuseport.Counts // what the steering program gave to no slot
	Sides     map[uint64]Side  // by generation
	Resources Resources        // of the candidate
	Namespace map[string]uint64
	Err       error // an account that could not be read
}

// Side is one generation in a reading.
type Side struct {
	Slot  uint8
	Alive bool
	Exit  string // how it ended, if it did

	// Of the candidate: its listening sockets, and those that are in their slots.
	Sockets, InSlot int
	SlotsErr        error // why the slots could not be read

	// Probes that were answered, read before the flows; those that were begun, by
	// listener, read after them. So a probe is no flow that nobody can explain.
	Probed uint64
	Dialed map[string]uint64

	Flows, HTTP flows.Counts      // over all listeners, and over those for HTTP
	Moved       Moved             // the same over the listeners that the release is of
	Established map[string]uint64 // by listener
	Whole       bool              // every flow of it was counted
	Runs        reuseport.Counts  // of its slot

	Queued   account.QueueLengths
	Queues   map[string]account.QueueStatus // by listener, where they are its own
	Balances map[string]Balance             // by listener, where it keeps a ledger

	// Of its ledger: why it says nothing, connections of QUIC, flows of UDP, packets
	// that named another slot.
	Damage    string
	QUIC, UDP ledger.Flows
	Strays    map[uint8]uint64
}

// Moved is what became of flows of which the candidate got some: what two
// generations are compared by.
type Moved struct {
	Flows, HTTP flows.Counts
	Failed      uint64       // flows of TCP with an answer that the generation counts as an error itself
	Datagrams   ledger.Flows // of QUIC and UDP, by its own word
}

// bad are flows whose client got no answer, or a reset. A stream that gets no
// answer need not have failed.
// What the generation itself counts as an error is more than the kernel sees; both
// may know of the same flow. Of QUIC and UDP the generation alone knows.
func (m Moved) bad() uint64 {
	return max(m.Failed, m.HTTP[flows.Failed]+less(m.Flows[flows.ResetSent], m.HTTP[flows.ResetSent])) + m.Datagrams.Failed
}

// decided are flows of which it is known whether they failed.
func (m Moved) decided() uint64 {
	return m.HTTP[flows.Answered] + m.HTTP[flows.Unanswered] + less(m.Flows[flows.Closed], m.HTTP[flows.Closed]) + m.Datagrams.Accepted
}

func since(now, then reuseport.Counts, r reuseport.Reason) uint64 { return less(now[r], then[r]) }

// less is a - b, and 0 where an account is gone or was begun anew.
func less(a, b uint64) uint64 { return a - min(a, b) }
