package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/steer"
)

const (
	// askedMost is how many listeners of a candidate are asked for an answer
	// (docs/decisions/012). With more, a release would last as long as its probes do.
	askedMost = 128
	// reachesAtOnce bounds the threads that wait for a handshake.
	reachesAtOnce = 8
)

// sample divides listeners into those that are asked for an answer, each time
// others but one of each protocol at least, and those that a connection has to
// do for. Those of datagrams, which have neither, are left out.
func sample(all []config.Listener) (asked, reached []config.Listener) {
	all = slices.DeleteFunc(slices.Clone(all), func(l config.Listener) bool { return !l.Protocol.HasStreams() })
	if len(all) <= askedMost {
		return all, nil
	}
	seen := map[config.Protocol]bool{}
	for _, i := range rand.Perm(len(all)) {
		if l := all[i]; len(asked) < askedMost || !seen[l.Protocol] {
			asked = append(asked, l)
			seen[l.Protocol] = true
		} else {
			reached = append(reached, l)
		}
	}
	return asked, reached
}

// reachAll opens and closes a connection on each of some listeners, which the
// steering program sends to the candidate alone. Whether it accepts them is for
// the caller to wait for.
func (s *Supervisor) reachAll(ctx context.Context, by steer.Prober, g *generation, listeners []config.Listener) error {
	if len(listeners) == 0 {
		return nil
	}
	ctx, span := s.tracer.Start(ctx, "reach listeners")
	defer span.End()
	before, err := by.Counts(int(g.slot))
	if err != nil {
		return err
	}
	all, reaching := errgroup.WithContext(ctx)
	all.SetLimit(reachesAtOnce)
	for _, l := range listeners {
		all.Go(func() error {
			if reaching.Err() != nil {
				return nil // another's error is told
			}
			if err := reach(by, g, l); err != nil {
				return fmt.Errorf("listener %s: %w", l.Name, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	after, err := by.Counts(int(g.slot))
	if err != nil {
		return err
	}
	if n := after[reuseport.Probe] - before[reuseport.Probe]; n < uint64(len(listeners)) {
		return fmt.Errorf("%d of %d connections reached the candidate", n, len(listeners))
	}
	return nil
}

// reach opens and closes one connection. By system calls alone: what a
// net.Dialer does beside takes longer than the connection.
func reach(by steer.Prober, g *generation, l config.Listener) (err error) {
	to := probeAddress(l)
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Unmap().Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from, err := claimSource(fd, to)
	if err != nil {
		return err
	}
	timeout := unix.NsecToTimeval(probeTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return err
	}
	if err := by.Steer(from, g.slot); err != nil {
		return err
	}
	g.dialed.add(l.Name)
	defer func() { err = errors.Join(err, by.Unsteer(from)) }()
	err = unix.Connect(fd, sa)
	for errors.Is(err, unix.EINTR) { // the runtime's signals interrupt a thread that waits
		err = unix.Connect(fd, sa)
	}
	switch {
	case err == nil, errors.Is(err, unix.EISCONN), errors.Is(err, unix.ECONNRESET): // accepted and ended at once
		return nil
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EALREADY):
		err = fmt.Errorf("no answer within %v", probeTimeout)
	}
	return fmt.Errorf("connect: %w", err)
}
