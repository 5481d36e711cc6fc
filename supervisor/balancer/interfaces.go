package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/proxy/config"
)

// Hanger attaches the balancer's program to interfaces.
type Hanger interface {
	// Attach hangs the program on an interface, or replaces it there at once if it
	// hangs there already. It never replaces a program that is not the balancer's.
	Attach(name string, ifindex int, generic bool) error
	// Detach takes it off, also where the interface has vanished.
	Detach(name string) error
	// Hanging are the interfaces that it was hung on, by an earlier process too.
	Hanging() ([]string, error)
}

// iface is an interface of the configuration.
type iface struct {
	ifindex int    // 0 while there is none of the name
	mac     string // its address
	hangs   bool   // whether the program hangs there
	leaving bool   // no more in the configuration
	problem string
	retry   time.Time // not before
}

func (b *Balancer) configureInterfaces(names []string) {
	b.look = true
	for _, i := range b.interfaces {
		i.leaving = true
	}
	for _, name := range names {
		if i := b.interfaces[name]; i != nil {
			i.leaving = false
		} else {
			b.interfaces[name] = &iface{}
		}
	}
}

// adoptInterfaces finds those that a process before has left the program on and that
// the configuration does not name any more: it is taken off.
func (b *Balancer) adoptInterfaces() error {
	names, err := b.hang.Hanging()
	if err != nil {
		return fmt.Errorf("find the interfaces of the process before: %w", err)
	}
	for _, name := range names {
		if b.interfaces[name] == nil {
			b.log.Info("the balancer leaves an interface", "interface", name)
			b.interfaces[name] = &iface{leaving: true}
		}
	}
	return nil
}

// attach hangs the program where it does not hang yet. An interface that is not
// there is waited for: only what cannot be for another reason is an error.
func (b *Balancer) attach() error {
	var errs []error
	for name, i := range b.interfaces {
		if i.leaving {
			if err := b.hang.Detach(name); err != nil {
				b.log.Error("detach the balancer", "interface", name, "error", err)
			}
			delete(b.interfaces, name)
			continue
		}
		index, mac := 0, ""
		if link, err := net.InterfaceByName(name); err == nil {
			index, mac = link.Index, string(link.HardwareAddr)
		}
		if index != i.ifindex || mac != i.mac {
			*i = iface{ifindex: index, mac: mac} // another one, or none, or with another address
			b.log.Info("interface of the balancer", "interface", name, "there", index != 0)
		}
		if i.hangs || index == 0 || time.Now().Before(i.retry) {
			continue
		}
		if err := b.hang.Attach(name, index, b.conf.XDPMode == config.XDPGeneric); err != nil {
			err = fmt.Errorf("attach the balancer to %s: %w", name, err)
			errs = append(errs, err)
			if err.Error() != i.problem {
				b.log.Error("the balancer does not hang", "error", err)
			}
			i.problem, i.retry = err.Error(), time.Now().Add(retryAfter)
			continue
		}
		i.hangs, i.problem = true, ""
	}
	return errors.Join(errs...)
}

// watchInterfaces has the loop look at the interfaces whenever one changes, and
// every second: an event may get lost, and what could not be attached may be now.
func (b *Balancer) watchInterfaces(ctx context.Context) {
	events := make(chan netlink.LinkUpdate)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(events, done); err != nil {
		b.log.Warn("changes of interfaces are seen within a second only", "error", err)
		events = nil
	}
	tick := time.NewTicker(retryAfter)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if events != nil {
				go func() { // until the subscription has ended
					for range events {
					}
				}()
			}
			return
		case _, ok := <-events:
			if !ok {
				events = nil
			}
		case <-tick.C:
		}
		b.post(func() { b.look = true })
	}
}
