package reuseport

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Flow is a flow of UDP that is told by its addresses.
type Flow struct{ Client, Server netip.AddrPort }

// RememberedIn reads from what another process has pinned below dir which slot the
// latest datagram of each flow was given to. A flow stays there when it is over, and
// when its slot is dead, until its client sends again or newer ones need the room.
func RememberedIn(dir string) (map[Flow]uint8, error) {
	open := func(name string) (*ebpf.Map, error) {
		return ebpf.LoadPinnedMap(filepath.Join(dir, layout, name), &ebpf.LoadPinOptions{ReadOnly: true})
	}
	listeners, err := open(steerMapListeners)
	if err != nil {
		return nil, fmt.Errorf("open the listeners: %w", err)
	}
	defer listeners.Close()
	flows, err := open(datagramMapFlows)
	if err != nil {
		return nil, fmt.Errorf("open the flows: %w", err)
	}
	defer flows.Close()

	servers := map[uint32]netip.AddrPort{}
	var address steerAddress
	var perCPU []steerListener
	each := listeners.Iterate()
	for each.Next(&address, &perCPU) {
		servers[perCPU[0].Number] = netip.AddrPortFrom(netip.AddrFrom16(address.Addr).Unmap(), address.Port)
	}
	if err := each.Err(); err != nil {
		return nil, fmt.Errorf("read the listeners: %w", err)
	}
	slots := map[Flow]uint8{}
	var key datagramFlowKey
	var f datagramFlow
	each = flows.Iterate()
	for each.Next(&key, &f) {
		if key.Len == byAddress {
			slots[Flow{key.client(), servers[key.Listener]}] = uint8(f.Slot)
		}
	}
	if err := each.Err(); err != nil {
		return nil, fmt.Errorf("read the flows: %w", err)
	}
	return slots, nil
}

// byAddress is FLOW_ADDRESS of datagram.c.
const byAddress = 0xff

// client is struct source of tables.h, which stands where a connection ID would.
func (k *datagramFlowKey) client() netip.AddrPort {
	port := uint16(k.Id[16])<<8 | uint16(k.Id[17])
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(k.Id[:16])).Unmap(), port)
}
