package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/baton-mesh/baton/supervisor/certwatch"
)

const (
	// rotateEvery is how often a new key for TLS tickets is made; with as many
	// as are kept, a ticket stays good for the week that TLS lets it live.
	rotateEvery = 24 * time.Hour
	// watchAgain is the pause after a watch that failed, or certificates that
	// cannot be loaded: half of a renewal, perhaps.
	watchAgain = 10 * time.Second
)

func (s *Supervisor) rotateKeys(ctx context.Context) {
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.keys.Rotate(now)
		case <-ctx.Done():
			return
		}
	}
}

// watchCertificates releases what serves anew when one of its certificate files
// has changed. A certificate that is refused is not tried again before it
// changes once more.
func (s *Supervisor) watchCertificates(ctx context.Context) {
	var refused map[string]string // what the last release for a certificate's sake has read
	for ctx.Err() == nil {
		path, files := s.servingCertificates()
		if refused != nil {
			files = refused
		}
		watch, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			var failed error
			err := certwatch.Watch(watch, files, func() {
				refused, failed = s.releaseCertificates(path)
				stop()
			})
			ended <- errors.Join(err, failed)
		}()
		var err error
		select {
		case err = <-ended:
		case <-s.certs: // another configuration serves, with other certificates perhaps
			stop()
			err = <-ended
			refused = nil
		}
		stop()
		if err != nil {
			s.log.Error("certificates", "error", err, "again_in", watchAgain.String())
			select {
			case <-time.After(watchAgain):
			case <-ctx.Done():
			}
		}
	}
}

// releaseCertificates releases and waits. It returns the files that the release
// has read if they do not serve now, and an error if it could not read them.
func (s *Supervisor) releaseCertificates(path string) (refused map[string]string, err error) {
	s.log.Info("a certificate has changed", "config", path)
	s.mu.Lock()
	var rest []string // where listeners are split, those of others stay theirs
	if g := s.shift.current; g != nil {
		rest = s.restOf(g)
	}
	s.mu.Unlock()
	r, err := s.enqueue("certificates", Request{ConfigPath: path, Listeners: rest}, nil)
	if err != nil {
		return nil, err
	}
	<-r.done
	switch {
	case r.result.Outcome == Passed || r.result.Outcome == Superseded:
		return nil, nil
	case r.recipe == nil:
		return nil, errors.New(r.result.Reason)
	}
	return r.recipe.config.CertificateFiles(), nil
}

// servingCertificates are the files of the generation that serves, with what
// they held when it was made, and its configuration's path: empty for the
// supervisor's own.
func (s *Supervisor) servingCertificates() (path string, files map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.shift.current
	if g == nil {
		return "", nil
	}
	if s.opts.ConfigPath != "" {
		path = g.recipe.configPath
	}
	return path, g.recipe.config.CertificateFiles()
}
