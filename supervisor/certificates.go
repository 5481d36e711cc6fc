package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
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

// certified is a generation that serves, and the certificates that it has read.
type certified struct {
	generation *generation
	path       string            // of its configuration; empty: the supervisor's own
	files      map[string]string // what they held when it was made, by path
}

// watchCertificates releases a generation that serves anew when one of its certificate
// files has changed: where listeners are split, each that has some, for those. A
// certificate that is refused is not tried again before it changes once more.
func (s *Supervisor) watchCertificates(ctx context.Context) {
	refused := map[*generation]map[string]string{} // what the last release for a certificate's sake has read
	for ctx.Err() == nil {
		watch, stop := context.WithCancel(ctx)
		all := s.servingCertificates()
		changed, failed := make(chan certified, len(all)), make(chan error, len(all))
		var watching sync.WaitGroup
		for _, of := range all {
			files := of.files
			read, isRefused := refused[of.generation]
			if isRefused {
				files = read
			}
			readable := func(err error) {
				if err != nil || !isRefused { // they can be read, and are not good
					s.certificatesReadable(of.generation, err)
				}
			}
			watching.Go(func() {
				if err := certwatch.Watch(watch, files, func() { changed <- of; stop() }, readable); err != nil {
					failed <- err
				}
			})
		}
		var err error
		select {
		case of := <-changed:
			stop()
			watching.Wait()
			if refused[of.generation], err = s.releaseCertificates(of); refused[of.generation] == nil {
				delete(refused, of.generation)
			}
		case err = <-failed:
		case <-s.certs: // another configuration serves, with other certificates perhaps
			clear(refused)
		case <-ctx.Done():
		}
		stop()
		watching.Wait()
		if err != nil {
			s.log.Error("a renewed certificate was not released: who serves has the one before", "error", err, "again_in", watchAgain.String())
			select {
			case <-time.After(watchAgain):
			case <-ctx.Done():
			}
		}
	}
}

// certificatesReadable tells of a file that cannot be read any more, before a release or
// the next supervisor needs it; nil: all can be read.
func (s *Supervisor) certificatesReadable(g *generation, err error) {
	if s.certificatesUsable(g, err) == (err == nil) {
		return
	}
	if err == nil {
		s.log.Info("the files of certificates can be used again", "generation", g.id)
		return
	}
	s.log.Warn("a file of a certificate cannot be read: who serves has what it held, but a release would be refused, and another supervisor not start", "generation", g.id, "error", err)
}

// certificatesUsable notes why the files of a generation's certificates cannot be used;
// nil: they can. It returns whether they could before.
func (s *Supervisor) certificatesUsable(g *generation, err error) (before bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.unusable[g] == nil
	delete(s.unusable, g)
	if err != nil {
		s.unusable[g] = err
	}
	return before
}

// releaseCertificates releases and waits. It returns the files that the release
// has read if they do not serve now, and an error if it could not read them. Where
// another release is under way it waits for that alone, which may read the same files,
// or bring a configuration that this one would take back.
func (s *Supervisor) releaseCertificates(of certified) (refused map[string]string, err error) {
	s.mu.Lock()
	first, own := cmp.Or(s.waiting, s.running), s.restOf(of.generation) // the listeners of others stay theirs
	s.mu.Unlock()
	if first != nil {
		<-first.done
		return nil, nil
	}
	s.log.Info("a certificate has changed", "generation", of.generation.id, "config", of.path)
	r, err := s.enqueue("certificates", Request{ConfigPath: of.path, Listeners: own}, nil)
	if err != nil {
		return nil, err
	}
	<-r.done
	if r.result.Outcome == Passed || r.result.Outcome == Superseded {
		s.certificatesUsable(of.generation, nil)
		return nil, nil
	}
	s.certificatesUsable(of.generation, fmt.Errorf("release %d: %s", r.result.ID, r.result.Reason))
	if r.recipe == nil {
		return nil, errors.New(r.result.Reason)
	}
	return r.recipe.config.CertificateFiles(own...), nil
}

// otherCertificates has the files of who serves now watched. s.mu may be held.
func (s *Supervisor) otherCertificates() {
	select {
	case s.certs <- struct{}{}:
	default:
	}
}

// servingCertificates are those of the listeners that generations have.
func (s *Supervisor) servingCertificates() (all []certified) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.unusable, func(g *generation, _ error) bool { return !s.owns(g) })
	for _, g := range s.generations {
		if g.leftover() || !s.owns(g) {
			continue
		}
		of := certified{generation: g, files: g.recipe.config.CertificateFiles(s.restOf(g)...)}
		if s.opts.ConfigPath != "" {
			of.path = g.recipe.configPath
		}
		if len(of.files) > 0 {
			all = append(all, of)
		}
	}
	return all
}
