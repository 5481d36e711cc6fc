package judge

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/account"
)

// two is a case of two generations, 1 in slot 0 before and 2 in slot 1, with a reading
// before the shift and one after it, in which the candidate has answered 100 flows.
func two() (c *Case, after *Reading) {
	conf := &config.Config{Listeners: []config.Listener{{Name: "web", Protocol: config.HTTP, Workers: 1}}}
	conf.Release.Verify.MinFlows, conf.Release.Verify.MaxErrorRate = 20, 0.05
	c = Open(Party{2, conf}, Party{1, conf}, true)
	side := func(slot uint8, answered uint64) Side {
		var n flows.Counts
		n[flows.Established], n[flows.Answered], n[flows.Closed] = answered, answered, answered
		return Side{Slot: slot, Alive: true, Whole: true, Sockets: 1, InSlot: 1, Dialed: map[string]uint64{}, Flows: n, HTTP: n, Moved: Moved{Flows: n, HTTP: n},
			Established: map[string]uint64{"web": answered}, Queues: map[string]account.QueueStatus{"web": {}}}
	}
	begun := time.Now()
	c.Add(Reading{At: begun, Sides: map[uint64]Side{1: side(0, 1000), 2: side(1, 0)}})
	c.Shut(1, reuseport.Counts{}, map[string]Shut{"web": {Established: 1000}})
	c.Out(1, reuseport.Counts{})
	c.Add(Reading{At: begun.Add(time.Second), Sides: map[uint64]Side{1: side(0, 1000), 2: side(1, 100)}})
	return c, c.now()
}

func TestGates(t *testing.T) {
	own := func(change func(*Side)) func(*Case, *Reading) {
		return func(_ *Case, now *Reading) { s := now.Sides[2]; change(&s); now.Sides[2] = s }
	}
	other := func(change func(*Side)) func(*Case, *Reading) {
		return func(_ *Case, now *Reading) { s := now.Sides[1]; change(&s); now.Sides[1] = s }
	}
	for name, tt := range map[string]struct {
		change func(*Case, *Reading)
		want   Judgement
		reason string // how the reasons begin; empty: there are none
	}{
		"nothing happens":        {own(func(*Side) {}), Pass, ""},
		"it ended":               {own(func(s *Side) { s.Alive, s.Exit = false, "exit status 3" }), Fail, "alive: generation 2 ended: exit status 3"},
		"it gave up a socket":    {own(func(s *Side) { s.InSlot = 0 }), Fail, "sockets: generation 2 has given up 1 of its 1"},
		"the slots are not seen": {own(func(s *Side) { s.SlotsErr = fmt.Errorf("no") }), Inconclusive, "sockets: the slots cannot be read: no"},
		"flows went to the sink": {func(_ *Case, now *Reading) { now.NoSlot[reuseport.Sink] = 3 }, Fail, "steered: 3 flows found no generation"},
		"nobody was there for them": {func(c *Case, now *Reading) {
			now.NoSlot[reuseport.Sink] = 3
			other(func(s *Side) { s.Alive = false })(c, now)
		}, Pass, ""},
		"a queue ran over": {func(c *Case, now *Reading) {
			now.Namespace = map[string]uint64{"listen_overflows": 2}
			own(func(s *Side) {
				s.Queues = map[string]account.QueueStatus{"web": {QueueLengths: account.QueueLengths{ToAccept: 9}, Dropped: 2, Full: true}}
			})(c, now)
		}, Fail, "queues: the accept queue of listener web was full, with 9 waiting, and dropped 2"},
		"a flow went astray":                   {other(func(s *Side) { s.Established = map[string]uint64{"web": 1001} }), Fail, "misrouted: 1 flows of listener web reached generation 1"},
		"a probe did":                          {other(func(s *Side) { s.Established, s.Dialed = map[string]uint64{"web": 1001}, map[string]uint64{"web": 1} }), Pass, ""},
		"a packet went astray":                 {other(func(s *Side) { s.Strays = map[uint8]uint64{1: 4} }), Fail, "strays: 4 packets of QUIC that named generation 2 reached generation 1"},
		"the slot of a dead one is named":      {other(func(s *Side) { s.Strays = map[uint8]uint64{7: 4} }), Pass, ""},
		"a flow of UDP went astray":            {other(func(s *Side) { s.Runs[reuseport.Current] = 1 }), Fail, "strays: generation 1, which no shift names, was given 1 flows"},
		"a flow was reset unaccepted":          {own(func(s *Side) { s.Flows[flows.ResetQueued] = 1 }), Fail, "resets: 1 flows were reset in the queue of generation 2"},
		"one probe failed":                     {func(c *Case, _ *Reading) { c.Asked(fmt.Errorf("silence")) }, Pass, ""},
		"two probes failed":                    {func(c *Case, _ *Reading) { c.Asked(fmt.Errorf("silence")); c.Asked(fmt.Errorf("silence")) }, Fail, "answers: 2 probes in a row had no answer: silence"},
		"it takes itself for another":          {func(c *Case, _ *Reading) { c.Asked(ErrIdentity) }, Fail, "identity: "},
		"the budget is spent":                  {own(func(s *Side) { s.Moved.Failed = 6 }), Fail, "errors: 6 of the latest 100 flows failed; the budget is 5%"},
		"the budget is not spent":              {own(func(s *Side) { s.Moved.Failed = 5 }), Pass, ""},
		"flows are missing":                    {own(func(s *Side) { s.Balances = map[string]Balance{"web": {Established: 100, Accepted: 98}} }), Fail, "conservation: listener web: of 100 flows that were established 0 are queued and 98"},
		"an account has a hole":                {own(func(s *Side) { s.Whole = false }), Inconclusive, "observation: the account of generation 2 does not begin with it"},
		"an account falls":                     {other(func(s *Side) { s.Flows[flows.Answered]-- }), Inconclusive, "observation: generation 1 had 1000 flows answered and has 999"},
		"it went astray to one that has ended": {other(func(s *Side) { s.Alive, s.Established = false, map[string]uint64{"web": 1001} }), Pass, ""},
		"more went astray than were moved": {func(c *Case, now *Reading) {
			c.Shut(1, reuseport.Counts{}, map[string]Shut{"api": {}})
			other(func(s *Side) {
				s.Established, s.Runs[reuseport.Migrated] = map[string]uint64{"web": 1001, "api": 1}, 1
			})(c, now)
		}, Fail, "misrouted: 1 flows reached generation 1, which no shift named"},
		"a flow of UDP, to one that has ended": {other(func(s *Side) { s.Alive, s.Runs[reuseport.Current] = false, 1 }), Pass, ""},
		"the slot of one that ended is named": {func(c *Case, now *Reading) {
			other(func(s *Side) { s.Alive = false })(c, now)
			own(func(s *Side) { s.Strays = map[uint8]uint64{0: 4} })(c, now)
		}, Pass, ""},
		"packets had gone astray before": {func(c *Case, now *Reading) {
			other(func(s *Side) { s.Strays = map[uint8]uint64{1: 4} })(c, c.first())
			other(func(s *Side) { s.Strays = map[uint8]uint64{1: 4} })(c, now)
		}, Pass, ""},
		"they had reached the candidate": {func(c *Case, now *Reading) {
			own(func(s *Side) { s.Strays = map[uint8]uint64{0: 4} })(c, c.first())
			own(func(s *Side) { s.Strays = map[uint8]uint64{0: 4} })(c, now)
		}, Fail, "strays: 4 packets of QUIC that named generation 1 reached generation 2"},
		"a full queue, none ran over": {own(func(s *Side) { s.Queues = map[string]account.QueueStatus{"web": {Dropped: 2, Full: true}} }), Pass, ""},
		"another's queue ran over": {func(c *Case, now *Reading) {
			now.Namespace = map[string]uint64{"listen_overflows": 2}
			own(func(s *Side) { s.Queues = map[string]account.QueueStatus{"web": {Dropped: 2}} })(c, now)
		}, Pass, ""},
		"a probe failed, one passed, one failed": {func(c *Case, _ *Reading) {
			c.Asked(fmt.Errorf("silence"))
			c.Asked(nil)
			c.Asked(fmt.Errorf("silence"))
		}, Pass, ""},
		"enough flows for a budget": {own(func(s *Side) { s.Moved.HTTP[flows.Answered], s.Moved.Failed = 20, 20 }), Fail, "errors: 20 of the latest 20"},
		"too few for one":           {own(func(s *Side) { s.Moved.HTTP[flows.Answered], s.Moved.Failed = 19, 19 }), Pass, ""},
		"as many fail before it": {func(c *Case, now *Reading) {
			own(func(s *Side) { s.Moved.Failed = 6 })(c, now)
			other(func(s *Side) { s.Moved.HTTP[flows.Answered], s.Moved.Failed = 1020, 2 })(c, now)
		}, Pass, ""},
		"just the budget fails before it": {func(c *Case, now *Reading) {
			own(func(s *Side) { s.Moved.Failed = 6 })(c, now)
			other(func(s *Side) { s.Moved.HTTP[flows.Answered], s.Moved.Failed = 1020, 1 })(c, now)
		}, Fail, "errors: 6 of the latest 100"},
		"too few before it": {func(c *Case, now *Reading) {
			own(func(s *Side) { s.Moved.Failed = 6 })(c, now)
			other(func(s *Side) { s.Moved.HTTP[flows.Answered], s.Moved.Failed = 1019, 19 })(c, now)
		}, Fail, "errors: 6 of the latest 100"},
		"it failed and does no more": {func(c *Case, now *Reading) {
			own(func(s *Side) { s.Moved.Failed = 50 })(c, now)
			c.Add(Reading{At: now.At.Add(time.Second), Sides: maps.Clone(now.Sides)})
			own(func(s *Side) { s.Moved.HTTP[flows.Answered] += 20 })(c, c.now())
		}, Pass, ""},
		"one flow may be in its hands": {own(func(s *Side) { s.Balances = map[string]Balance{"web": {Established: 100, Queued: 1, Accepted: 98}} }), Pass, ""},
		"a probe was not counted":      {own(func(s *Side) { s.Probed = 101 }), Inconclusive, "observation: 1 probes of 101 were not counted"},
	} {
		c, now := two()
		now.Sides = maps.Clone(now.Sides)
		tt.change(c, now)
		findings := c.Findings()
		v := c.Verdict(findings)
		got := Reasons(findings, Violated) + Reasons(findings, Unclear)
		if v.Judgement != tt.want || (got == "") != (tt.reason == "") || !strings.HasPrefix(got, tt.reason) {
			t.Errorf("%s: %s, %q; want %s, %q", name, v.Judgement, got, tt.want, tt.reason)
		}
	}
}

// What a gate counts is told, also where it is as it must be.
func TestQueuesAreTold(t *testing.T) {
	c, now := two()
	s := now.Sides[2]
	q := account.QueueStatus{Dropped: 2}
	q.Moved = reuseport.Moved{HalfOpen: 3, ToAccept: 4}
	s.Queues = map[string]account.QueueStatus{"web": q}
	now.Sides[2] = s
	const want = "2 segments were dropped at its listeners, and a queue of this network namespace ran over 0 times; 3 handshakes and 4 connections were moved to it"
	if f := c.queuesHeld(); f.State != Held || f.Words != want {
		t.Errorf("%+v, want %q", f, want)
	}
}

// Without the kernel's count nothing is concluded from it.
func TestNothingIsCounted(t *testing.T) {
	c, now := two()
	c.counted = false
	s := now.Sides[2]
	s.Flows[flows.ResetQueued], s.Probed, s.Whole = 1, 1000, false
	now.Sides[2] = s
	if v := c.Verdict(c.Findings()); v.Judgement != Pass || v.Flows != nil {
		t.Errorf("%+v", v)
	}
}

// A listener that comes back to a generation may be used again.
func TestReopen(t *testing.T) {
	c, now := two()
	if !c.IsShut(1, "web") || c.IsShut(1, "api") || c.IsShut(3, "web") || !c.IsOut(1) || c.IsOut(3) {
		t.Error("who is shut, and who is out, is not as it was noted")
	}
	s := now.Sides[1]
	s.Established, s.Runs[reuseport.Current] = map[string]uint64{"web": 1005}, 5
	now.Sides[1] = s
	if v := c.Verdict(c.Findings()); v.Judgement != Fail {
		t.Errorf("%+v", v)
	}
	c.Reopen(func(id uint64) bool { return id == 1 }, func(id uint64, listener string) bool { return id == 1 && listener == "web" })
	if v := c.Verdict(c.Findings()); v.Judgement != Pass || c.IsShut(1, "web") || c.IsOut(1) {
		t.Errorf("%+v", v)
	}
}
