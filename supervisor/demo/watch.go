package demo

import (
	"context"
	"sync"
	"time"
)

// Watcher follows the status of a node, to know when new flows went over from
// one generation to another, more exactly than the end of a command tells.
type Watcher struct {
	Node *Node

	mu     sync.Mutex
	latest *Status
	shifts []Shift
}

// Shift is one generation taking over all new flows. The instant lies in the window.
type Shift struct {
	Window
	Generation int
	PID        int
}

// Run asks for the status every few milliseconds until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	var before time.Time // when the last status without the next shift was asked for
	known := 0           // the youngest generation that has taken over
	for ctx.Err() == nil {
		asked := time.Now()
		if s, err := w.Node.Status(ctx); err == nil {
			w.mu.Lock()
			w.latest = s
			if g := s.serving(); g > known {
				if known > 0 {
					w.shifts = append(w.shifts, Shift{Window{before, time.Now()}, g, s.PIDOf(g)})
				}
				known = g
			}
			before = asked
			w.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(3 * time.Millisecond):
		}
	}
}

// Latest is the newest status, nil before the first.
func (w *Watcher) Latest() *Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest
}

// Shifts lists the shifts seen so far, in order.
func (w *Watcher) Shifts() []Shift {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shifts[:len(w.shifts):len(w.shifts)]
}

// Cut is how many flows the deadlines of drains that ended have cut, by the
// supervisor's own count.
func (w *Watcher) Cut() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.latest == nil {
		return 0
	}
	return w.latest.Drained.Cut
}
