package demo

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// progress shows what happens: on a terminal one line that is refreshed below
// the messages, elsewhere a plain line now and then.
type progress struct {
	terminal bool

	mu   sync.Mutex // guards out, and line's own state
	out  io.Writer
	line func() string
}

// eraseLine moves to the start of the line and clears it (ECMA-48, EL).
const eraseLine = "\r\x1b[K"

// run shows the line until ctx is done.
func (p *progress) run(ctx context.Context) {
	every := 2 * time.Second
	if p.terminal {
		every = 200 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.show("")
		case <-ctx.Done():
			if p.terminal {
				io.WriteString(p.out, eraseLine)
			}
			return
		}
	}
}

// say writes a message that stays.
func (p *progress) say(format string, args ...any) {
	p.show(fmt.Sprintf(format, args...) + "\n")
}

func (p *progress) show(message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.terminal:
		io.WriteString(p.out, eraseLine+message+p.line())
	case message != "":
		io.WriteString(p.out, message)
	default:
		io.WriteString(p.out, p.line()+"\n")
	}
}

// meter turns a growing sum into a rate.
type meter struct {
	at   time.Time
	sum  int
	rate float64
}

// per is the rate per second of the last whole second or so, given the sum now.
func (m *meter) per(sum int) float64 {
	if passed := time.Since(m.at); passed >= time.Second {
		if !m.at.IsZero() {
			m.rate = float64(sum-m.sum) / passed.Seconds()
		}
		m.at, m.sum = time.Now(), sum
	}
	return m.rate
}

// line is the state of the run in one line.
func (r *run) line() string {
	c := r.load.Counts()
	text := fmt.Sprintf("%5.1f s  %4.0f/s  %6d ok  %d failed  %d cut",
		time.Since(r.began).Seconds(), r.meter.per(c.OK+c.Failed+c.Cut), c.OK, c.Failed, c.Cut)
	s := r.watch.Latest()
	if s == nil {
		return text
	}
	text += fmt.Sprintf("  generation %d, %d beside it", s.Current, len(s.beside()))
	if s.Release != nil {
		text += fmt.Sprintf(", release %d: %s", s.Release.ID, s.Release.Stage)
	}
	return text
}
