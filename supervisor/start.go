package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// start makes the candidate: its own sockets in a free slot, forked with them,
// waited for until it says READY=1. No flow reaches it yet.
func (s *Supervisor) start(ctx context.Context, r *release) error {
	if err := s.makeRoom(ctx, r); err != nil {
		return err
	}
	if err := s.admit(r); err != nil {
		return err
	}
	if err := s.intact(r); err != nil { // since it has been validated
		return err
	}
	g, err := s.fork(r.recipe)
	if err != nil {
		return err
	}
	s.mu.Lock()
	r.candidate, r.result.Generation = g, g.id
	s.note()
	s.mu.Unlock()
	// In the table before it is ready: the probe needs it there, and a slot
	// that no shift names gets nothing else.
	if err := s.steering.Fill(g.slot, r.recipe.config, g.sockets); err != nil {
		return err
	}
	if len(g.datagrams) > 0 {
		if err := s.steering.FillDatagrams(g.slot, r.recipe.config, g.datagrams); err != nil {
			return err
		}
		g.closeDatagrams()
	}

	s.reached("slot filled")
	timeout := r.recipe.config.Release.ReadyTimeout
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-g.ready:
			r.event(trace.EventReady)
			return s.setState(g, Ready)
		case <-g.exited:
			return fmt.Errorf("generation %d ended before it was ready: %s", g.id, s.exitOf(g))
		case d := <-g.extend:
			timer.Reset(d)
		case <-timer.C:
			return fmt.Errorf("generation %d was not ready within %v", g.id, timeout)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// makeRoom keeps the number of living generations below the cap by ending the
// oldest drain.
func (s *Supervisor) makeRoom(ctx context.Context, r *release) error {
	most := r.recipe.config.Release.MaxGenerations
	for {
		s.mu.Lock()
		var oldest *generation
		live := 0
		for _, g := range s.generations {
			if g.alive() { // what has ended is about to be forgotten
				live++
			}
			if g.state == Draining && (oldest == nil || g.id < oldest.id) {
				oldest = g
			}
		}
		s.mu.Unlock()
		if live < most {
			return nil
		}
		if oldest == nil {
			return fmt.Errorf("%d generations live and none of them drains; max_generations is %d", live, most)
		}
		s.log.Warn("too many generations: the oldest drain ends now", "generation", oldest.id, "max_generations", most)
		oldest.squeeze()
		select {
		case <-oldest.exited:
			s.removed(oldest)
			s.mu.Lock()
			r.result.Evidence = append(r.result.Evidence, fmt.Sprintf("generation %d drained, and was ended before its deadline, for %d lived and max_generations is %d: %d of its flows were cut",
				oldest.id, live, most, oldest.cut))
			s.mu.Unlock()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fork makes a generation and its process.
func (s *Supervisor) fork(what *recipe) (_ *generation, err error) {
	g := &generation{
		recipe: what, state: Starting, started: time.Now(),
		ready: make(chan struct{}), extend: make(chan time.Duration, 1),
		exited: make(chan struct{}), squeezed: make(chan struct{}),
	}
	if g.sockets, err = s.steering.Bind(what.config); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && g.process == nil { // else its end is watched, which gives everything back
			s.steering.Empty(g.slot)
			g.closeSockets()
			g.flows.End()
			s.mu.Lock()
			s.slots[g.slot] = nil
			s.mu.Unlock()
			if g.cgroup != nil {
				g.cgroup.Remove()
			}
			s.keeper.Drop(keptOf(g.id, ""))
			if g.text > 0 {
				unix.Close(g.text)
			}
			g.book.Close()
			g.intake.Close()
		}
	}()
	if g.datagrams, err = s.steering.BindDatagrams(what.config); err != nil {
		return nil, err
	}
	if err := s.number(g); err != nil {
		return nil, err
	}
	s.protect(g)
	s.count(g, false)
	if s.cgroups != nil {
		if g.cgroup, err = s.cgroups.Make(g.id); err != nil {
			return nil, err
		}
	}
	s.echo(g)
	if g.book, err = account.Create(what.config, g.id, s.keepSpans); err != nil {
		s.log.Error("the generation will keep no ledger", "generation", g.id, "error", err)
	}
	s.openIntake(g)
	g.dropped = func() { s.keeper.Drop(keptOf(g.id, "socket/")) }
	if g.text, err = configFD(what.config); err != nil {
		return nil, err
	}
	s.keep(g)
	s.births.Lock()
	defer s.births.Unlock()
	_, err = s.spawn(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.born = nil
	if err != nil {
		s.note()
		return nil, err
	}
	s.generations = append(s.generations, g)
	s.work.Go(func() { s.watch(g) })
	return g, nil
}

// enter puts a generation's process on disk before it is executed: one without a
// enter would be nobody's, should this supervisor die.
func (s *Supervisor) enter(g *generation, p *spawn.Process) error {
	g.process = p
	g.startTime, _ = spawn.StartTime(p.PID)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.born = g
	if err := s.persist(); err != nil {
		return fmt.Errorf("record generation %d: %w", g.id, err)
	}
	s.reached("process noted")
	return nil
}

// number gives a generation its number and a slot, on disk before in use.
func (s *Supervisor) number(g *generation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range reuseport.Slots {
		// In turn, so that a slot rests as long as possible before it is used again.
		slot := s.nextSlot
		s.nextSlot = (s.nextSlot + 1) % reuseport.Slots
		if s.slots[slot] == nil {
			s.slotsUsed = max(s.slotsUsed, slot+1)
			g.slot, g.id = uint8(slot), s.state.NextGeneration
			s.slots[slot] = g
			s.state.NextGeneration++
			return s.persist()
		}
	}
	return errors.New("no slot is free")
}

// spawn starts the process with what the contract promises it.
func (s *Supervisor) spawn(g *generation) (*spawn.Process, error) {
	c := g.recipe.config
	var files []int
	var names []string
	for _, l := range c.Listeners {
		for _, sock := range g.sockets[l.Name] {
			files = append(files, sock.FD)
			names = append(names, l.Name)
		}
	}
	for _, l := range c.Listeners { // UDP behind TCP
		for _, sock := range g.datagrams[l.Name] {
			files = append(files, sock.FD)
			names = append(names, l.Name+contract.UDPSuffix)
		}
	}
	env := inheritedEnv()
	if g.intake != nil {
		env = exportEnv(env, g.intake.Endpoint())
	}
	env = append(env,
		contract.EnvListenFDs+"="+strconv.Itoa(len(files)),
		contract.EnvListenFDNames+"="+strings.Join(names, ":"),
		contract.EnvNotifySocket+"="+s.notify.Path(),
		"OTEL_RESOURCE_ATTRIBUTES="+resourceAttributes(s.config.Node.Name, g.id),
	)
	if c.Proxy.Baton {
		env = append(env,
			fmt.Sprintf("%s=%d", contract.EnvConfigFD, contract.FirstFD+len(files)),
			fmt.Sprintf("%s=%d", contract.EnvKeysFD, contract.FirstFD+len(files)+1),
			fmt.Sprintf("%s=%d", contract.EnvGenerationID, g.id),
			fmt.Sprintf("%s=%d", contract.EnvSlot, g.slot),
			fmt.Sprintf("%s=%d", contract.EnvServerID, c.Node.ServerID),
		)
		files = append(files, g.text, s.keys.FD())
		if g.book != nil {
			env = append(env, fmt.Sprintf("%s=%d", contract.EnvLedgerFD, contract.FirstFD+len(files)))
			files = append(files, g.book.FD())
		}
	}
	o := spawn.Options{Binary: g.recipe.binary, Args: c.Proxy.Command[1:], Env: env, Account: g.recipe.account, Files: files,
		Record: func(p *spawn.Process) error { return s.enter(g, p) }}
	if g.cgroup != nil {
		o.Cgroup = g.cgroup.Dir
	}
	return spawn.Start(o)
}

// inheritedEnv is the supervisor's environment without what is meant for the
// supervisor: its own overrides, and what systemd told it.
func inheritedEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(key, "BATON_"), strings.HasPrefix(key, "LISTEN_"),
			key == contract.EnvNotifySocket, key == "WATCHDOG_PID", key == "WATCHDOG_USEC",
			key == "OTEL_RESOURCE_ATTRIBUTES":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// heard takes what a generation said.
func (s *Supervisor) heard(g *generation, fields map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.stops = g.stops || fields["STOPPING"] == "1"
	if text, ok := fields["STATUS"]; ok {
		g.message = text
	}
	if n, err := strconv.Atoi(fields[contract.NotifyCut]); err == nil && n >= 0 {
		g.cut = n
	}
	if n, err := strconv.Atoi(fields[contract.NotifyIdleClosed]); err == nil && n >= 0 {
		g.idleClosed = n
	}
	if usec, err := strconv.ParseInt(fields["EXTEND_TIMEOUT_USEC"], 10, 64); err == nil && usec > 0 {
		select {
		case g.extend <- time.Duration(usec) * time.Microsecond:
		default: // one is waiting to be read
		}
	}
	if fields["READY"] == "1" {
		g.readyOnce.Do(func() { close(g.ready) })
	}
}

// dismiss undoes start. A candidate that was given flows, or may have taken
// some, keeps them until they end, like any other that is replaced; one that
// cannot have any is killed.
func (s *Supervisor) dismiss(_ context.Context, r *release) error {
	g := r.candidate
	if g == nil {
		return nil
	}
	s.mu.Lock()
	drain := (r.shifted || !s.steering.Chooses()) && g.alive()
	if drain {
		g.traceEnd(r)
		s.retire(g, g.recipe.config.Release.DrainTimeout)
	}
	s.mu.Unlock()
	if !drain {
		s.stop(g, 0)
	}
	return nil
}

func (s *Supervisor) setState(g *generation, st State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.state = st
	s.note()
	return nil
}

// exitOf says how a generation ended, and what it said last.
func (s *Supervisor) exitOf(g *generation) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.message != "" {
		return g.exit + " (it said: " + g.message + ")"
	}
	return g.exit
}
