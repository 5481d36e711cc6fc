package steer

import "github.com/baton-mesh/baton/supervisor/ports"

// Buffers reads what waits at a slot's sockets of UDP. Nobody has a copy of those:
// sock_diag tells of them by their cookies, which stand in the slot.
func (s *BPF) Buffers(slot uint8) (map[string]ports.Buffer, error) {
	cookies := map[string][]uint64{}
	for _, l := range s.all() {
		if !l.udp {
			continue
		}
		found, err := l.group.Cookies(slot)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			cookies[l.name] = append(cookies[l.name], found...) // one that moves is there twice
		}
	}
	if len(cookies) == 0 {
		return nil, nil
	}
	buffers, err := ports.Buffers()
	if err != nil {
		return nil, err
	}
	all := map[string]ports.Buffer{}
	for name, workers := range cookies {
		for _, cookie := range workers {
			if b, ok := buffers[cookie]; ok {
				sum := all[name]
				all[name] = ports.Buffer{Queued: sum.Queued + b.Queued, Room: sum.Room + b.Room, Dropped: sum.Dropped + b.Dropped}
			}
		}
	}
	return all, nil
}

// countSink remembers what a sink has let fall that is about to close. l.sinkMu is held.
func (l *listener) countSink() { l.missed = l.missedNow() }

// missedNow is what all sinks of a listener have let fall. l.sinkMu is held.
func (l *listener) missedNow() uint64 {
	if l.sink.FD < 0 {
		return l.missed
	}
	n, err := l.sink.dropped()
	if err != nil {
		return l.missed
	}
	return l.missed + uint64(n)
}

func (l *listener) sinkMissed() uint64 {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	return l.missedNow()
}
