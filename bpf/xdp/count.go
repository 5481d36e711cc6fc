package xdp

import (
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"
)

// reasons are the names of what becomes of packets, in the order of the counters.
var reasons = [...]string{
	"cid", "option", "table", "ring", "icmp", "no_real",
	"unknown_id", "dead_id", "unlearned", "local", "no_neighbour", "no_route", "no_forwarding", "too_long", "no_device", "fib",
	"other_port", "other_protocol", "fragment", "malformed", "other_host",
}

// The reasons of packets that had a VIP.
const decided = int(xdpReasonNO_REAL) + 1

// Explanation is what the program would do with a packet.
type Explanation struct {
	Verdict, Reason string
	Beside          []string
	Index           uint32 // of the real. 0: none
}

// Explain runs the program on a packet, from its IP header on, without effect.
func (b *Balancer) Explain(packet []byte) (Explanation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	frame := make([]byte, 14, 14+len(packet))
	switch {
	case len(packet) > 0 && packet[0]>>4 == 6:
		frame[12], frame[13] = unix.ETH_P_IPV6>>8, unix.ETH_P_IPV6&0xff
	default:
		frame[12], frame[13] = unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff
	}
	if err := b.objs.Answers.Put(uint32(0), xdpAnswer{}); err != nil {
		return Explanation{}, err
	}
	verdict, _, err := b.objs.Explain.Test(append(frame, packet...))
	if err != nil {
		return Explanation{}, fmt.Errorf("run the program: %w", err)
	}
	var a xdpAnswer
	if err := b.objs.Answers.Lookup(uint32(0), &a); err != nil {
		return Explanation{}, err
	}
	e := Explanation{Reason: "not_ours", Index: a.Real, Verdict: "aborted"}
	if verdicts := []string{"aborted", "drop", "pass", "send", "send"}; int(verdict) < len(verdicts) {
		e.Verdict = verdicts[verdict]
	}
	for i, name := range reasons {
		switch {
		case a.Beside>>i&1 == 0:
		case i < decided, i >= int(xdpReasonOTHER_PORT):
			e.Reason = name
		default:
			e.Beside = append(e.Beside, name)
		}
	}
	return e, nil
}

// Counts is what the program has counted.
type Counts struct {
	VIPs  map[VIP]VIPCounts
	Reals map[uint32]RealCounts // that have got any, and are there
	// Others are frames that are for the address of a VIP and not for the VIP: each
	// has passed, and one reason.
	Others map[string]uint64
}

// VIPCounts is what has become of a VIP's packets.
type VIPCounts struct {
	// Reasons has each packet once, and beside it what else has happened.
	Reasons       map[string]uint64
	Octets, Local uint64 // of frames sent or left to this host, and of the latter
}

// RealCounts is what a real has got.
type RealCounts struct{ Packets, Octets, Flows uint64 }

// Counted reads the counters.
func (b *Balancer) Counted() (Counts, error) {
	c := Counts{map[VIP]VIPCounts{}, map[uint32]RealCounts{}, map[string]uint64{}}
	var errs []error
	var tallies []xdpTally
	if err := b.objs.Tallies.Lookup(uint32(0), &tallies); err != nil {
		return c, err
	}
	for _, t := range tallies {
		for i, n := range t.Packets[xdpReasonOTHER_PORT:] {
			c.Others[reasons[int(xdpReasonOTHER_PORT)+i]] += n
		}
	}
	b.mu.Lock()
	vips := maps.Clone(b.vips)
	b.mu.Unlock()
	for v, e := range vips {
		if err := b.objs.Tallies.Lookup(e.Number, &tallies); err != nil {
			errs = append(errs, err)
			continue
		}
		sum := VIPCounts{Reasons: map[string]uint64{}}
		for _, t := range tallies {
			for i, n := range t.Packets {
				if n > 0 || i < decided {
					sum.Reasons[reasons[i]] += n
				}
			}
			sum.Octets += t.Octets
			sum.Local += t.LocalOctets
		}
		c.VIPs[v] = sum
	}
	var got []xdpRealTally
	err := each(b.objs.Reals, func(index uint32, e *xdpReal) {
		if e.Addr == [4]uint32{} {
			return
		}
		if err := b.objs.RealTallies.Lookup(index, &got); err != nil {
			errs = append(errs, err)
			return
		}
		var sum RealCounts
		for _, t := range got {
			sum.Packets += t.Packets
			sum.Octets += t.Octets
			sum.Flows += t.Flows
		}
		if sum != (RealCounts{}) {
			c.Reals[index] = sum
		}
	})
	return c, errors.Join(append(errs, err)...)
}
