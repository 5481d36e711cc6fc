package balancer

import (
	"cmp"
	"net"
	"slices"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

// Status is where everything stands.
type Status struct {
	Interfaces []InterfaceStatus `json:"interfaces"`
	Reals      []RealStatus      `json:"reals"`
	VIPs       []VIPStatus       `json:"vips"`
	Rings      int               `json:"rings"`
	Reloads    Reloads           `json:"reloads"`
	// ConnectionIDs are the keys of encrypted ones, where the balancer is alone. Beside
	// a supervisor, whose status has them, they are missing.
	ConnectionIDs *idkeys.Status `json:"connection_ids,omitempty"`
}

// InterfaceStatus is one interface.
type InterfaceStatus struct {
	Name     string `json:"name"`
	Ifindex  int    `json:"ifindex,omitempty"`
	Attached bool   `json:"attached"`
	Problem  string `json:"problem,omitempty"`
}

// RealStatus is one real.
type RealStatus struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	ServerID uint32 `json:"server_id,omitempty"`
	Weight   int    `json:"weight"`
	State    State  `json:"state"`
	// Since is when its checks last changed it. Zero: not since the start.
	Since time.Time `json:"since,omitzero"`
	// Share is what it gets now of its weight, 0 to 1.
	Share   float64 `json:"share"`
	MAC     string  `json:"mac,omitempty"`
	Problem string  `json:"problem,omitempty"`
	Index   uint32  `json:"index"`
	// What it has got since it has its index.
	Packets uint64 `json:"packets"`
	Octets  uint64 `json:"octets"`
	// Flows are those that the hash gave it.
	Flows uint64 `json:"flows"`
}

// VIPStatus is one VIP, for one protocol.
type VIPStatus struct {
	Address  string `json:"address"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	// Reals is how many serve it, Serving how many of them get new flows now.
	Reals   int `json:"reals"`
	Serving int `json:"serving"`
	// Packets by what became of them, and octets that were sent or left to this host.
	Packets     map[string]uint64 `json:"packets"`
	Octets      uint64            `json:"octets"`
	LocalOctets uint64            `json:"local_octets"`
}

// Status is where everything stands now.
func (b *Balancer) Status() Status {
	s := Status{ConnectionIDs: b.ids.Status()}
	b.post(func() {
		now := time.Now()
		counts, err := b.kernel.Counted()
		if err != nil {
			b.log.Error("read the balancer's counters", "error", err)
		}
		for name, i := range b.interfaces {
			problem := i.problem
			if i.ifindex == 0 {
				problem = "there is none of the name"
			}
			s.Interfaces = append(s.Interfaces, InterfaceStatus{name, i.ifindex, i.hangs, problem})
		}
		for _, r := range b.byName() {
			status, got := b.realStatus(r, now), counts.Reals[r.index]
			status.Packets, status.Octets, status.Flows = got.Packets, got.Octets, got.Flows
			s.Reals = append(s.Reals, status)
		}
		for vip := range b.vips {
			status, got := b.vipStatus(vip), counts.VIPs[vip]
			status.Packets, status.Octets, status.LocalOctets = got.Reasons, got.Octets, got.Local
			s.VIPs = append(s.VIPs, status)
		}
		s.Rings, s.Reloads = len(b.ringReals), b.reloads
	})
	slices.SortFunc(s.Interfaces, func(a, c InterfaceStatus) int { return cmp.Compare(a.Name, c.Name) })
	slices.SortFunc(s.VIPs, func(a, c VIPStatus) int {
		return cmp.Or(cmp.Compare(a.Address, c.Address), cmp.Compare(a.Port, c.Port), cmp.Compare(a.Protocol, c.Protocol))
	})
	return s
}

// Ready reports whether packets are forwarded on every interface.
func (b *Balancer) Ready() bool {
	ready := false
	b.post(func() {
		ready = b.settled
		for _, i := range b.interfaces {
			ready = ready && i.hangs
		}
	})
	return ready
}

func (b *Balancer) realStatus(r *real, now time.Time) RealStatus {
	slow := b.conf.Health.SlowStart
	s := RealStatus{
		Name: r.conf.Name, Address: r.conf.Address, ServerID: r.conf.ServerID, Weight: *r.conf.Weight,
		State: r.state(slow, now), Since: r.health.Since, Problem: r.problem, Index: r.index,
	}
	if weight, _ := r.share(slow, now); s.Weight > 0 {
		s.Share = float64(weight) / float64(s.Weight) / 10
	}
	if r.hop.MAC != [6]byte{} {
		s.MAC = net.HardwareAddr(r.hop.MAC[:]).String()
	}
	if s.Problem == "" {
		s.Problem = r.hop.Problem
	}
	return s
}

func (b *Balancer) vipStatus(vip VIP) VIPStatus {
	ring := b.vips[vip].Ring
	s := VIPStatus{
		Address: vip.Addr.String(), Port: vip.Port, Protocol: string(config.TCP),
		Reals: b.ringReals[ring].count(), Serving: len(b.have.Rings[ring]),
	}
	if vip.UDP {
		s.Protocol = string(config.UDP)
	}
	return s
}
