package reuseport

import "fmt"

// Moved is what a slot got on a listener from listening sockets that closed, since
// the slot was filled there. What moves more than once is counted each time.
type Moved struct {
	HalfOpen uint64 `json:"half_open"` // handshakes whose ACK had not come
	ToAccept uint64 `json:"to_accept"` // connections that nobody had accepted
}

// Place is a slot on a listener, by its [Group.Number].
type Place struct {
	Slot   uint8
	Number uint32
}

// Moved reads what moved where. A place to which nothing did is not among them,
// and none to which something did while 4,096 others were: see [Migrated] of
// [Node.Counters] for all of a slot's.
func (n *Node) Moved() (map[Place]Moved, error) {
	all := map[Place]Moved{}
	var key steerPlaceKey
	var perCPU []steerMoved
	entries := n.moves.Iterate()
	for entries.Next(&key, &perCPU) {
		if key.Slot >= Slots {
			continue
		}
		var sum Moved
		for _, m := range perCPU {
			sum.HalfOpen += m.HalfOpen
			sum.ToAccept += m.ToAccept
		}
		all[Place{uint8(key.Slot), key.Listener}] = sum
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read what moved: %w", err)
	}
	return all, nil
}
