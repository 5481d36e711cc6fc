package xdp

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/baton-mesh/baton/quicid"
)

// model is the program once more, in Go, by what the C's comments and the RFCs say
// and not by its code: no time, no bound on what is learned.
type model struct {
	hostOrder bool
	links     map[int][6]byte // address of the interface; it comes in on loopback
	devices   map[int]bool    // what a frame may leave by
	routes    map[netip.Addr]route
	keys      *quicid.Keys
	vips      map[VIP]modelVIP
	servers   map[uint32]uint32
	reals     map[uint32]modelReal
	rings     map[uint32][]uint32
	flows     map[modelKey]modelFlow
}

type modelVIP struct {
	VIPEntry
	serial int
}

type modelReal struct {
	Real
	epoch int
}

type modelKey struct {
	client netip.AddrPort
	port   uint16
	serial int
}

type modelFlow struct {
	real  uint32
	epoch int
}

// route is what the kernel's routes say of a real.
type route struct {
	refused string // the reason
	nowhere bool   // there is no link whose limit the packet could pass
	to      [6]byte
	ifindex int
}

// outcome is what becomes of a frame.
type outcome struct {
	verdict uint32
	out     []byte // where it is sent or passes
	reasons []string
	vip     *VIP
	real    uint32
	octets  uint64 // that count for the real
}

// parsed is what the model reads of a frame.
type parsed struct {
	src, dst    netip.Addr
	proto       byte
	icmp        bool
	sport       uint16 // the client's
	dport       uint16
	l4          []byte // as much as is there
	ipLen       int
	tcpOptions  []byte // room that the header claims, as far as the frame goes
	optionsRoom int    // and how much it claims
}

var be = binary.BigEndian

// read gives the reason for which a frame is left alone, "" for one not even counted.
func (m *model) read(f []byte, forUs bool) (p parsed, ok bool, why string) {
	if len(f) < 14 {
		return p, false, ""
	}
	six := be.Uint16(f[12:]) == 0x86dd
	ip, head := f[14:], 20
	if six {
		head = 40
	} else if be.Uint16(f[12:]) != 0x0800 {
		return p, false, ""
	}
	if len(ip) < head {
		return p, false, ""
	}
	if six {
		p.src, p.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	} else {
		p.src, p.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	}
	if !m.filtered(p.dst) {
		return p, false, ""
	}
	if forUs && [6]byte(f) != m.links[loopback] {
		return p, false, "other_host"
	}
	p, why = p.transport(ip, six)
	return p, why == "", why
}

// filtered is whether an address looks like a VIP's.
func (m *model) filtered(a netip.Addr) bool {
	word, bit := filterBit(a)
	for v := range m.vips {
		if w, b := filterBit(v.Addr); w == word && b == bit {
			return true
		}
	}
	return false
}

func (p parsed) transport(ip []byte, six bool) (parsed, string) {
	version, errors := byte(4), []byte{3, 11, 12} // RFC 792
	icmpProto := byte(1)
	if six {
		version, errors, icmpProto = 6, []byte{1, 2, 3, 4}, 58 // RFC 4443
	}
	header := func(ip []byte) (src, dst netip.Addr, proto byte, rest []byte, fragment uint16, ok bool) {
		if six {
			if len(ip) < 40 || ip[0]>>4 != version {
				return src, dst, 0, nil, 0, false
			}
			return netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:])), ip[6], ip[40:], 0, true
		}
		if len(ip) < 20 || ip[0]>>4 != version || ip[0]&15 < 5 {
			return src, dst, 0, nil, 0, false
		}
		n := min(int(ip[0]&15)*4, len(ip)) // options may be cut off
		return netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:])), ip[9], ip[n:], be.Uint16(ip[6:]), true
	}
	src, dst, proto, rest, fragment, ok := header(ip)
	switch {
	case !ok:
		return p, "malformed"
	case fragment&0x3fff != 0:
		return p, "fragment"
	}
	p.src, p.dst, p.proto, p.l4 = src, dst, proto, rest
	if p.ipLen = int(be.Uint16(ip[2:])); six {
		p.ipLen = 40 + int(be.Uint16(ip[4:]))
	}
	if proto == icmpProto {
		if len(rest) < 8 {
			return p, "malformed"
		}
		if !slices.Contains(errors, rest[0]) {
			return p, "other_protocol"
		}
		from, to, inner, l4, fragment, ok := header(rest[8:])
		switch {
		case !ok:
			return p, "malformed"
		case from != dst:
			return p, "other_protocol"
		case fragment&0x1fff != 0:
			return p, "fragment"
		}
		p.icmp, p.src, p.proto, p.l4 = true, to, inner, l4
	}
	switch {
	case six && p.proto == 44:
		return p, "fragment"
	case p.proto != isTCP && p.proto != isUDP:
		return p, "other_protocol"
	case len(p.l4) < 8:
		return p, "malformed"
	case p.proto == isTCP && !p.icmp && (len(p.l4) < 20 || p.l4[12]>>4 < 5):
		return p, "malformed"
	}
	p.sport, p.dport = be.Uint16(p.l4), be.Uint16(p.l4[2:])
	if p.icmp {
		p.sport, p.dport = p.dport, p.sport
	}
	if p.proto == isTCP && !p.icmp {
		p.optionsRoom = int(p.l4[12]>>4)*4 - 20
		p.tcpOptions = p.l4[20:min(20+p.optionsRoom, len(p.l4))]
	}
	return p, ""
}

func (m *model) vipOf(p parsed) (VIP, modelVIP, bool) {
	for _, port := range []uint16{p.dport, 0} {
		v := VIP{p.dst, port, p.proto == isUDP}
		if e, ok := m.vips[v]; ok {
			return v, e, true
		}
	}
	return VIP{}, modelVIP{}, false
}

// option is the number that a segment's options name. They are walked by kind and
// length (RFC 9293 section 3.1); one that lies ends the walk.
func (m *model) option(p parsed) uint32 {
	o := p.tcpOptions
	for len(o) >= 6 {
		switch {
		case o[0] == 0:
			return 0
		case o[0] == 1:
			o = o[1:]
			continue
		case o[0] == 0xb7 && o[1] == 6:
			if m.hostOrder {
				return binary.LittleEndian.Uint32(o[2:])
			}
			return be.Uint32(o[2:])
		case o[1] < 2 || int(o[1]) > len(o):
			return 0
		}
		o = o[o[1]:]
	}
	return 0
}

// quic is the server that a datagram's connection ID names, and whether it may
// begin a connection.
func (m *model) quic(p parsed, katran bool) (id uint32, opening bool) {
	const room = 26 // a long header's start with the longest ID
	if len(p.l4) < 8+room || be.Uint16(p.l4[4:]) < 8+room {
		return 0, false
	}
	d := p.l4[8:]
	cid := d[1:]
	if d[0]&0x80 != 0 {
		opening = true
		n, version, kind := int(d[5]), be.Uint32(d[1:]), d[0]>>4&3
		handshake := version == 1 && kind == 2 || version == 0x6b3343cf && kind == 3
		katran = katran && n >= 8 && n <= 20 && handshake
		cid = d[6:]
		if n != quicid.Len {
			if !katran {
				return 0, opening
			}
			k, _ := quicid.DecodeKatran(cid[:8])
			return k.Host, opening
		}
	}
	if id, _, ok := m.keys.Decode(cid[:quicid.Len]); ok {
		return id.ServerID, opening
	}
	if katran {
		k, _ := quicid.DecodeKatran(cid[:8])
		return k.Host, opening
	}
	return 0, opening
}

// slot is flow_hash of parse.h: the same on every balancer, so it is written down.
func slot(client netip.Addr, sport, dport uint16, size int) int {
	w := addrOf(client)
	ports := uint64(wire(sport)) | uint64(wire(dport))<<16
	h := uint64(w[1])<<32 | uint64(w[0])
	h ^= (uint64(w[3])<<32 | uint64(w[2])) * 0x9e3779b97f4a7c15
	h ^= ports << 32
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return int(uint32((h^h>>33)>>32)) % size
}

// run is what becomes of a frame. Without effects nothing is remembered, and the
// frame's own address is not looked at.
func (m *model) run(f []byte, effects bool) outcome {
	p, ok, why := m.read(f, effects)
	if !ok {
		o := outcome{verdict: pass, out: f}
		if why != "" {
			o.reasons = []string{why}
		}
		return o
	}
	vip, e, ok := m.vipOf(p)
	if !ok {
		return outcome{verdict: pass, out: f, reasons: []string{"other_port"}}
	}
	o := outcome{vip: &vip}
	up := func(index uint32) bool { r, ok := m.reals[index]; return ok && !r.Down }
	add := func(reason string) { o.reasons = append(o.reasons, reason) }
	key := modelKey{netip.AddrPortFrom(p.src, p.sport), p.dport, e.serial}

	var id uint32
	var opening, reset bool
	by := "option"
	switch {
	case p.icmp:
	case p.proto == isTCP:
		opening, reset = p.l4[13]&2 != 0, p.l4[13]&4 != 0
		if !opening {
			id = m.option(p)
		}
	case e.QUIC:
		by = "cid"
		id, opening = m.quic(p, e.KatranIDs)
	}
	if id != 0 {
		if index, ok := m.servers[id]; !ok {
			add("unknown_id")
		} else if up(index) {
			o.real = index
			add(by)
		} else {
			add("dead_id")
		}
	}
	if o.real == 0 {
		flow, ok := m.flows[key]
		if r := m.reals[flow.real]; ok && up(flow.real) && r.epoch == flow.epoch && (!opening || !r.Drained) {
			o.real = flow.real
			add("table")
		} else if ring := m.rings[e.Ring]; ring != nil {
			if index := ring[slot(p.src, p.sport, p.dport, len(ring))]; index != 0 && up(index) {
				o.real = index
				add("ring")
				if effects && !p.icmp && !reset {
					m.flows[key] = modelFlow{index, m.reals[index].epoch}
				}
			}
		}
		if p.icmp && o.real != 0 {
			o.reasons = []string{"icmp"}
		}
	}
	if o.real == 0 {
		add("no_real")
		o.verdict = drop
		return o
	}
	m.forward(&o, f, p)
	return o
}

func (m *model) forward(o *outcome, f []byte, p parsed) {
	r := m.reals[o.real]
	to, ifindex := route{to: r.MAC, ifindex: r.Ifindex}, r.Ifindex
	problem := ""
	_, linked := m.links[r.Ifindex]
	switch {
	case r.Local:
		problem, o.verdict, o.out = "local", pass, f
	case r.MAC == [6]byte{} || !linked:
		to = m.routes[r.Addr]
		problem, ifindex, o.verdict = to.refused, to.ifindex, drop
		switch {
		case p.ipLen > 1500 && !to.nowhere:
			problem = "too_long"
		case to.refused == "":
			problem, o.verdict = "fib", redirect
		}
	case !m.devices[ifindex] && ifindex != loopback:
		problem, o.verdict = "no_device", drop
	default:
		o.verdict = redirect
	}
	if o.verdict == redirect {
		source := m.links[ifindex]
		o.out = slices.Concat(to.to[:], source[:], f[12:])
		if ifindex == loopback {
			o.verdict = tx
		}
	}
	if problem != "" {
		o.reasons = append(o.reasons, problem)
	}
	if o.verdict != drop {
		o.octets = uint64(len(f))
	}
}
