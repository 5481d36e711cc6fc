package supervisor

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/baton-mesh/baton/bpf/bpffs"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// openSteerer opens the mode that was chosen.
func (s *Supervisor) openSteerer(mode config.Steering, attach bool) error {
	if mode == config.SteeringTakeover {
		shared, err := steer.OpenTakeover(s.config, s.leftToShare(), keptSockets(s.unclaimed), s.log)
		if err != nil {
			return err
		}
		s.steering = shared
		s.log.Warn("takeover mode: generations share their listening sockets; no probe by the public address, no ramp, no guard", "reason", s.why)
		if s.config.Release.Linger > 0 {
			s.log.Warn("release.linger has no effect in takeover mode: who lingers accepts new flows")
		}
		if why := spawn.OnlyOwn(s.config.Proxy.User); why != nil {
			s.log.Warn("generations run as this user", "uid", spawn.Own().UID, "instead_of", s.config.Proxy.User, "reason", why)
		}
		return nil
	}
	var err error
	if s.pins, err = bpffs.Mounted(instanceName(s.config.RuntimeDir)); err != nil {
		s.log.Warn("nothing is pinned: the tables cannot be inspected from outside", "reason", err)
	}
	s.openTCPOption(s.pins)
	again := slices.ContainsFunc(s.generations, func(g *generation) bool { return !g.leftover() })
	by, err := steer.OpenBPF(steer.Options{
		Listeners: s.adoptedListeners(), ServerID: s.numberInIDs(), Keys: s.ids, Pins: s.pins, Unsteered: !attach,
		Again: again, Kept: keptTables(s.unclaimed), Mark: s.tell,
	})
	if err != nil {
		return fmt.Errorf("steering: %w (`baton doctor` says what this machine lacks)", err)
	}
	s.steering = by // not a nil of its type
	s.openGuard(s.pins)
	s.openAccount(s.pins)
	return nil
}

// leftToShare are the generations of an earlier supervisor, whose sockets takeover
// mode goes on with.
func (s *Supervisor) leftToShare() (all []steer.Left) {
	for _, g := range s.generations {
		all = append(all, steer.Left{Generation: g.id, Serving: g.state == Serving, Process: g.process, Sockets: g.sockets})
	}
	return all
}

// inSlot reports how many of a generation's listening sockets are where they were put.
func (s *Supervisor) inSlot(g *generation) (in, all int, err error) {
	return s.steering.InSlot(g.slot, g.recipe.config, g.sockets)
}

// queueLengths sums up what is queued on some listening sockets.
func (s *Supervisor) queueLengths(sockets steer.Sockets) (sum account.QueueLengths, err error) {
	found, err := s.steering.Queued(sockets)
	for _, q := range found {
		sum.HalfOpen += q.HalfOpen
		sum.ToAccept += q.ToAccept
	}
	return sum, err
}

// account is whom a generation runs as. Takeover mode does without root, or with
// what is left of it in a container, and then there is no choice.
func (s *Supervisor) account(user string) (spawn.Account, error) {
	if s.steering.Mode() == config.SteeringTakeover && spawn.OnlyOwn(user) != nil {
		return spawn.Own(), nil
	}
	return spawn.LookUpAccount(user)
}

// PinsOf is where a supervisor with this runtime directory pins what it loads.
func PinsOf(runtimeDir string) string { return bpffs.Of(instanceName(runtimeDir)) }

// instanceName names pins and cgroups after a runtime directory. The BPF file
// system allows no dots; the hash keeps /run/a-b and /run/a.b apart.
func instanceName(runtimeDir string) string {
	dir := filepath.Clean(runtimeDir)
	sum := sha256.Sum256([]byte(dir))
	readable := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, strings.Trim(dir, "/"))
	return fmt.Sprintf("%.40s-%x", readable, sum[:4])
}
