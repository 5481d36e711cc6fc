package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
)

const (
	// readEvery is how often the gates are asked while a candidate has flows. A
	// reading takes some 10 µs a listener.
	readEvery = 200 * time.Millisecond
	// keptReadings bounds those that are remembered: some minutes.
	keptReadings = 1024
	// settleFor bounds the wait for counts that are on their way: a handshake
	// that the client has finished and the kernel has not.
	settleFor = 2 * time.Second
	// auditFor bounds the search for moments at which the books agree.
	auditFor = 20 * time.Second
)

// watch is what is known of a candidate from the shift to the verdict.
type watch struct {
	s                   *Supervisor
	r                   *release
	candidate, previous *generation
	begun               time.Time

	readings []reading // oldest first; the first is the one before the shift
	peak     uint64    // the most open flows the candidate was seen with
	closed   map[*generation]*closedAt
	out      map[*generation]reuseport.Counts // runs of those that no shift names, when it had ceased to
	audits   map[string]*audit                // by listener, before the verdict

	asking  chan error // a probe that is under way says here how it ended; nil: none is
	asked   time.Time  // when the last one began
	refusal []error    // probes that failed, in a row

	identity error // the candidate took itself for another
}

// reading is all that the gates look at, read at one moment.
type reading struct {
	at        time.Time
	none      reuseport.Counts // what the steering program gave to no slot
	sides     map[*generation]side
	resources resources
	namespace map[string]uint64
	err       error // an account that could not be read
}

// side is one generation in a reading.
type side struct {
	flows, http flows.Counts      // over all listeners, and over those for HTTP
	moved       moved             // the same over the listeners that the release is of
	established map[string]uint64 // by listener
	queued      account.QueueLengths
	balances    map[string]balance             // by listener, where the generation keeps a ledger
	queues      map[string]account.QueueStatus // by listener, where they are its own
	damage      string                         // why its ledger says nothing
	runs        reuseport.Counts               // of its slot

	// Of its ledger: connections of QUIC, flows of UDP, packets that named another slot.
	quic, udp ledger.Flows
	strays    map[uint8]uint64
}

// moved is what became of flows of which the candidate got some: what two
// generations are compared by.
type moved struct {
	flows, http flows.Counts
	failed      uint64       // flows of TCP with an answer that the generation counts as an error itself
	datagrams   ledger.Flows // of QUIC and UDP, by its own word
}

// watchFrom begins the watch, before the first flow.
func (s *Supervisor) watchFrom(r *release) (*watch, error) {
	w := &watch{s: s, r: r, candidate: r.candidate, previous: r.previous, begun: time.Now(), closed: map[*generation]*closedAt{}, out: map[*generation]reuseport.Counts{}}
	// Who gets nothing, whatever this release does.
	if err := w.shut(func(g *generation, listener string) bool {
		f := s.shiftOf(listener)
		return g != f.current && g != f.other && (g != w.candidate || !r.isOf(listener))
	}); err != nil {
		return nil, err
	}
	return w, w.read()
}

// read adds a reading.
func (w *watch) read() (err error) {
	now := reading{at: time.Now(), sides: map[*generation]side{}}
	if now.none, err = w.s.steering.Counts(reuseport.NoSlot); err != nil {
		return err
	}
	w.s.mu.Lock()
	all := append([]*generation(nil), w.s.generations...)
	w.s.mu.Unlock()
	for _, g := range append(all, w.candidate, w.previous) {
		if _, twice := now.sides[g]; twice || g.leftover() {
			continue
		}
		var sd side
		counts, err := g.flows.Read()
		switch {
		case errors.Is(err, account.ErrNoFlows):
		case err != nil:
			if g == w.candidate || g == w.previous && g.alive() {
				now.err = err
			}
		default:
			sd.established = make(map[string]uint64, len(counts))
			for _, l := range g.recipe.config.Listeners {
				sd.flows.Add(counts[l.Name])
				sd.established[l.Name] = counts[l.Name][flows.Established]
				if l.Protocol.IsHTTP() {
					sd.http.Add(counts[l.Name])
				}
				if !w.r.isOf(l.Name) {
					continue
				}
				sd.moved.flows.Add(counts[l.Name])
				if l.Protocol.IsHTTP() {
					sd.moved.http.Add(counts[l.Name])
				}
			}
		}
		if sd.runs, err = w.s.steering.Counts(int(g.slot)); err != nil {
			return err
		}
		if g == w.candidate || g == w.previous {
			if err := w.readOwn(g, &sd, counts); err != nil {
				return err
			}
		}
		w.readDatagrams(g, &sd)
		now.sides[g] = sd
	}
	now.namespace, _ = account.Namespace()
	now.resources = resourcesOf(w.candidate.process.PID)
	w.peak = max(w.peak, now.sides[w.candidate].flows.Open())
	if len(w.readings) == keptReadings {
		w.readings = append(w.readings[:1], w.readings[2:]...) // the first stays: it is what came before
	}
	w.readings = append(w.readings, now)
	return nil
}

func (w *watch) first() *reading { return &w.readings[0] }
func (w *watch) now() *reading   { return &w.readings[len(w.readings)-1] }

// step lets the window of a step pass and returns an error as soon as a gate is
// violated.
func (w *watch) step(ctx context.Context) error {
	window := time.NewTimer(w.r.recipe.config.Release.Verify.Window)
	defer window.Stop()
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	probing, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		if w.asking != nil { // what it found so late counts no more
			<-w.asking
			w.asking = nil
		}
	}()
	for {
		over := false // this event is the end of the window
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.candidate.exited:
		case <-tick.C:
		case err := <-w.asking:
			w.answered(err)
		case <-window.C:
			over = true
		}
		if err := w.look(); err != nil {
			return err
		}
		doubt := w.asking != nil || len(w.refusal) > 0 || w.doubtful()
		switch {
		case doubt:
			w.probe(probing)
			if over { // the step does not end in doubt: it goes on until a probe has said
				window.Reset(readEvery)
			}
		case over:
			return nil
		}
	}
}

// look takes a reading and asks every gate.
func (w *watch) look() error {
	if err := w.read(); err != nil {
		return err
	}
	return w.err(w.findings())
}

// err is a violation, and closes the verdict on it.
func (w *watch) err(findings []Finding) error {
	if judge(findings) != JudgedFail {
		return nil
	}
	w.conclude(findings)
	return errors.New(reasons(findings, Violated))
}

// conclude writes the verdict down.
func (w *watch) conclude(findings []Finding) Judgement {
	v := &Verdict{Judgement: judge(findings), Findings: findings, Milliseconds: float64(time.Since(w.begun).Microseconds()) / 1000}
	own, ownBefore := w.now().sides[w.candidate], w.first().sides[w.candidate]
	v.Harmed = less(own.moved.bad(), ownBefore.moved.bad())
	if w.s.kernel.Counts() {
		got, before := own.flows, ownBefore.flows
		for f := range got {
			got[f] = less(got[f], before[f])
		}
		v.Flows, v.Harmed = account.Facts(got), max(v.Harmed, got[flows.Failed])+got[flows.ResetQueued]
	}
	w.r.result.Verdict = v
	return v.Judgement
}

// findings asks every gate.
func (w *watch) findings() []Finding {
	all := make([]Finding, 0, len(gates))
	for _, g := range gates {
		f := g.ask(w)
		f.Gate = g.name
		all = append(all, f)
	}
	return all
}

// doubtful reports that for a second nobody got an answer although somebody is
// connected or waits to be accepted: a probe tells a quiet moment from a
// generation that hangs.
func (w *watch) doubtful() bool {
	if !w.s.kernel.Counts() || time.Since(w.asked) < time.Second {
		return false
	}
	now := w.now().sides[w.candidate]
	if now.queued.ToAccept == 0 && now.flows.Open() == 0 {
		return false
	}
	for i := len(w.readings) - 1; i > 0; i-- {
		before := &w.readings[i]
		if before.sides[w.candidate].flows[flows.Answered] != now.flows[flows.Answered] {
			return false
		}
		if w.now().at.Sub(before.at) >= time.Second {
			return true
		}
	}
	return false
}

// probe begins to ask the candidate, unless it is being asked.
func (w *watch) probe(ctx context.Context) {
	if w.asking != nil || !w.candidate.alive() {
		return
	}
	done := make(chan error, 1)
	w.asking, w.asked = done, time.Now()
	go func() { done <- w.s.askEach(ctx, w.candidate) }()
}

// answered takes how a probe ended.
func (w *watch) answered(err error) {
	w.asking = nil
	if err == nil {
		w.refusal = nil
		return
	}
	w.refused(err)
}

// refused takes a probe that failed.
func (w *watch) refused(err error) {
	if errors.Is(err, errIdentity) {
		w.identity = err // it did answer
		return
	}
	w.refusal = append(w.refusal, err)
}

// final asks the candidate once more, through its public addresses, and with
// that the account itself: a probe is a flow, and it must have been counted. Then
// it waits for a moment at which the books agree, listener by listener.
func (w *watch) final(ctx context.Context) error {
	for w.identity == nil && len(w.refusal) < 2 { // twice: one may have met a moment in which the machine was busy
		err := w.s.askEach(ctx, w.candidate)
		if err == nil {
			w.refusal = nil
			break
		}
		w.refused(err)
	}
	var looked time.Time
	for begun := time.Now(); ; {
		past := time.Since(begun)
		known := w.auditAll() || past > auditFor
		if known || time.Since(looked) >= readEvery {
			if err := w.look(); err != nil {
				return err
			}
			looked = time.Now()
		}
		if known && (w.unseenProbes() == 0 || past > settleFor) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(queuePoll):
		}
	}
}

// unseenProbes are those that were answered and that the account does not have.
func (w *watch) unseenProbes() uint64 {
	if !w.s.kernel.Counts() {
		return 0
	}
	made := w.candidate.probed.Load()
	return made - min(made, w.now().sides[w.candidate].flows[flows.Established])
}

// holds asks for a release that is not watched whether the candidate is where
// it was put.
func (s *Supervisor) holds(g *generation) error {
	if !g.alive() {
		return fmt.Errorf("generation %d ended: %s", g.id, s.exitOf(g))
	}
	in, all, err := s.inSlot(g)
	if err == nil && in < all {
		err = fmt.Errorf("generation %d has given up %d of its %d listening sockets", g.id, all-in, all)
	}
	return err
}
