package listener

import (
	"time"
)

// closeWait is how long a WebSocket's client may take to answer our close frame.
const closeWait = time.Second

// Tally is what the last call did.
type Tally struct {
	Cut        int64 // flows ended in the middle of something
	IdleClosed int64 // idle connections closed
}

// Tally is what the last call has done so far.
func (r *Registry) Tally() Tally {
	return Tally{Cut: r.cut.Load(), IdleClosed: r.idleClosed.Load()}
}

// LastCall ends what is left, and returns when every connection has closed.
//
// Idle connections leave at once. Upgraded connections and streams are told at
// moments spread over the window, so that their clients do not come back all
// together. Requests have until the end of the window. Each counts as cut,
// except the idle ones. A client that answers nothing delays the return by a
// second at most. The registry must be sealed.
func (r *Registry) LastCall(window time.Duration) {
	r.window = window
	r.lastCall.Store(true) // before the snapshot: what it misses sees this
	for _, c := range r.snapshot() {
		switch c.State() {
		case New, Idle:
			c.leave()
		case Active:
			if h := c.h2.Load(); h != nil {
				go h.goAway()
			}
		case Upgraded, WebSocket, TCP:
			go c.farewell()
		}
	}
	if r.emptyWithin(window) {
		return
	}
	for _, c := range r.snapshot() {
		switch c.State() {
		case New, Idle:
			c.leave()
		case Active:
			c.end()
		}
	}
	if r.emptyWithin(closeWait + lingerTime) {
		return
	}
	for _, c := range r.snapshot() {
		if c.State() != leaving {
			c.countCut()
		}
		c.tcp.Close()
	}
	// Whoever served them notices at its next read or write.
	r.emptyWithin(closeWait)
}

func (r *Registry) emptyWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.empty:
		return true
	case <-timer.C:
		return false
	}
}

// leave ends an idle connection without a reset: the client sees the end of the
// stream, and what it was writing at that moment is read and counted.
func (c *Conn) leave() {
	if h := c.h2.Load(); h != nil {
		go h.leave() // it may have to wait for a write
		return
	}
	if !c.become(Idle, leaving) && !c.become(New, leaving) {
		return
	}
	c.registry.idleClosed.Add(1)
	c.CloseWrite()
	// A timer, since the server sets read deadlines of its own.
	time.AfterFunc(lingerTime, func() { c.tcp.Close() })
}

// farewell ends an upgraded connection or a stream at a moment in the window.
func (c *Conn) farewell() {
	if c.told.Swap(true) {
		return
	}
	if c.registry.emptyWithin(c.registry.Jitter(c.registry.window)) {
		return
	}
	if u := c.upgrade.Load(); u != nil && u.webSocket {
		// Counted before: once told, the client may be gone before we look again.
		c.countCut()
		u.goAway(closeWait)
		c.endTLS()
	}
	c.end()
}

// end cuts the connection. Whoever serves it notices, and closes it.
func (c *Conn) end() {
	if h := c.h2.Load(); h != nil {
		go h.cut() // it may have to wait for a write
		return
	}
	if c.registry.has(c) {
		c.countCut()
		c.tcp.Close()
	}
}

func (c *Conn) countCut() bool {
	if c.counted.Swap(true) {
		return false
	}
	c.registry.countCut(1)
	return true
}

// Cut says that the deadline of a drain ended the connection in the middle of something.
func (c *Conn) Cut() bool { return c.counted.Load() }

func (r *Registry) countCut(n int) {
	r.cut.Add(int64(n))
	r.Ledger.Cut(n)
}

func (r *Registry) has(c *Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.conns[c]
	return ok
}
