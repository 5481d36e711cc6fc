package demo

import (
	"bufio"
	"fmt"
	"net/http"
	"time"
)

// events follows a stream of server-sent events to its end. Each event says when
// it was sent, so that one which was held back on the way shows.
func (c *client) events(a *attempt) error {
	h, err := c.dialHTTP(a, c.takesTLS(a))
	if err != nil {
		return err
	}
	defer h.Close()
	n := 1 + int(a.long/slowTick)
	if err := h.send("GET", fmt.Sprintf("/events?n=%d&seed=%d", n, a.seed), "Accept: text/event-stream"); err != nil {
		return err
	}
	resp, err := h.answer("GET", http.StatusOK)
	if err != nil {
		return err
	}
	a.waited(a.Start)
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		return fmt.Errorf("content type %q", got)
	}
	lines := bufio.NewScanner(resp.Body)
	for i := range n {
		if !lines.Scan() {
			return fmt.Errorf("ended after %d of %d events: %w", i, n, noEOF(lines.Err()))
		}
		var id, seed uint32
		var at int64
		if _, err := fmt.Sscanf(lines.Text(), "data: %d %d %d", &id, &seed, &at); err != nil || id != uint32(i) || seed != a.seed {
			return fmt.Errorf("event %d is %q", i, lines.Text())
		}
		a.waited(time.Unix(0, at))
		if !lines.Scan() || lines.Text() != "" {
			return fmt.Errorf("event %d does not end: %q, %w", i, lines.Text(), noEOF(lines.Err()))
		}
	}
	if lines.Scan() || lines.Err() != nil {
		return fmt.Errorf("after the last event: %q, %w", lines.Text(), noEOF(lines.Err()))
	}
	c.answered(h.secure)
	return nil
}
