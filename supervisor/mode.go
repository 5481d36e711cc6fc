package supervisor

import (
	"fmt"
	"os"
	"slices"

	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/doctor"
	"github.com/baton-mesh/baton/supervisor/spawn"
)

// chooseSteering turns what the configuration asks for into the mode that runs,
// with the reason where that is not the best there is. Asked for in words, a
// mode is taken or refused; only auto gives way.
func chooseSteering(want config.Steering) (mode config.Steering, why string, err error) {
	switch want {
	case config.SteeringTakeover:
		return config.SteeringTakeover, "the configuration says so", nil
	case config.SteeringBPF:
		return config.SteeringBPF, "", doctor.Missing()
	}
	lack := doctor.Missing()
	for _, try := range []func() error{reuseport.Supported, iter.Supported} {
		if lack == nil {
			lack = try()
		}
	}
	if lack != nil {
		return config.SteeringTakeover, lack.Error(), nil
	}
	return config.SteeringBPF, "", nil
}

// openSteerer opens the mode that was chosen.
func (s *Supervisor) openSteerer(mode config.Steering, attach bool) error {
	if mode == config.SteeringTakeover {
		shared, err := openTakeover(s.config, s.generations, s.unclaimed, s.log)
		if err != nil {
			return err
		}
		s.steering = shared
		s.log.Warn("takeover mode: generations share their listening sockets; no probe by the public address, no ramp, no guard", "reason", s.why)
		if s.config.Release.Linger > 0 {
			s.log.Warn("release.linger has no effect in takeover mode: who lingers accepts new flows")
		}
		if user := s.config.Proxy.User; os.Geteuid() != 0 {
			s.log.Warn("not root: generations run as this user", "uid", os.Geteuid(), "instead_of", user)
		}
		return nil
	}
	var err error
	if s.pins, err = pinDir(instanceName(s.config.RuntimeDir)); err != nil {
		s.log.Warn("nothing is pinned: the tables cannot be inspected from outside", "reason", err)
	}
	s.openTCPOption(s.pins)
	again := slices.ContainsFunc(s.generations, func(g *generation) bool { return !g.leftover() })
	by, err := openSteering(s.adoptedListeners(), s.numberInIDs(), s.ids, s.pins, attach, again, keptTables(s.unclaimed), s.tell)
	if err != nil {
		return fmt.Errorf("steering: %w (`baton doctor` says what this machine lacks)", err)
	}
	s.steering = by // not a nil of its type
	s.openGuard(s.pins)
	s.openAccount(s.pins)
	return nil
}

// account is whom a generation runs as. Takeover mode does without root, and
// then there is no choice.
func (s *Supervisor) account(user string) (spawn.Account, error) {
	if os.Geteuid() != 0 && s.steering.mode() == config.SteeringTakeover {
		return spawn.Account{UID: os.Geteuid(), GID: os.Getegid()}, nil
	}
	return spawn.LookUpAccount(user)
}
