package proxy_test

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/baton-mesh/baton/proxy/listener"
)

// framed is a client of HTTP/2 on which every frame is ours.
type framed struct {
	*client
	*http2.Framer
}

func dialFramed(t *testing.T, address string) *framed {
	c := dial(t, address)
	f := &framed{c, http2.NewFramer(c, c.r)}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

// greet sends what begins a connection.
func (f *framed) greet() {
	f.t.Helper()
	f.send(http2.ClientPreface)
	if err := f.WriteSettings(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *framed) request(id uint32) {
	f.t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a.example"}, {":path", "/"}} {
		encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	// In two parts, so that a frame of the proxy's own in between would show.
	if err := f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: block.Bytes()[:1], EndStream: true,
	}); err != nil {
		f.t.Fatal(err)
	}
	if err := f.WriteContinuation(id, true, block.Bytes()[1:]); err != nil {
		f.t.Fatal(err)
	}
}

// until reads frames up to one that fits, which it returns.
func until[F http2.Frame](f *framed, fits func(F) bool) F {
	f.t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			f.t.Fatalf("waiting for a %T: %v", *new(F), err)
		}
		if frame, ok := frame.(F); ok && fits(frame) {
			return frame
		}
	}
}

// goodbye reads a GOAWAY and compares the stream it names.
func (f *framed) goodbye(last uint32) {
	f.t.Helper()
	frame := until(f, func(*http2.GoAwayFrame) bool { return true })
	if frame.LastStreamID != last || frame.ErrCode != http2.ErrCodeNo {
		f.t.Errorf("goodbye at stream %d, %v; want %d", frame.LastStreamID, frame.ErrCode, last)
	}
}

func (f *framed) ping() [8]byte {
	f.t.Helper()
	return until(f, func(p *http2.PingFrame) bool { return !p.IsAck() }).Data
}

// served reads a response to its end.
func (f *framed) served(id uint32) {
	f.t.Helper()
	until(f, func(d *http2.DataFrame) bool { return d.StreamID == id && d.StreamEnded() })
}

const allStreams = 1<<31 - 1

func TestGoodbyeRefusesNoRequestOnItsWay(t *testing.T) {
	n := start(t, origin(t, hello), "")
	c := dialFramed(t, n.web)
	c.greet()
	c.request(1)
	c.served(1)
	n.term()
	c.goodbye(allStreams)
	ping := c.ping()
	// Written before the goodbye was read, for all that the proxy knows.
	c.request(3)
	c.served(3)
	if err := c.WritePing(true, ping); err != nil {
		t.Fatal(err)
	}
	c.goodbye(3)
	c.ended()
	c.Close()
	n.drained(nothing)
}

// Such a connection is one that net/http's Shutdown may wait for, for ever.
func TestConnectionThatGreetsInADrainIsServedAndLeaves(t *testing.T) {
	n := start(t, origin(t, hello), "")
	c := dialFramed(t, n.web)
	eventually(t, "accepted", func() bool { return n.Counts()[listener.New] == 1 })
	n.stop()
	c.greet()
	c.goodbye(allStreams)
	ping := c.ping()
	c.request(1)
	c.served(1)
	if err := c.WritePing(true, ping); err != nil {
		t.Fatal(err)
	}
	c.goodbye(1)
	c.ended()
	c.Close()
	n.drained(nothing)
}

func TestClientThatIgnoresTheGoodbyeStaysUntilTheLastCall(t *testing.T) {
	n := start(t, origin(t, hello), "")
	c := dialFramed(t, n.web)
	c.greet()
	c.request(1)
	c.served(1)
	n.stop()
	c.goodbye(allStreams)
	// An answer to a PING of somebody else's is no answer to ours.
	if err := c.WritePing(true, [8]byte{}); err != nil {
		t.Fatal(err)
	}
	c.request(3)
	c.served(3)
	eventually(t, "idle", func() bool { return n.Counts() == listener.Counts{listener.Idle: 1} })
	n.lastCall()
	c.goodbye(3)
	c.ended()
	c.Close()
	n.drained(listener.Tally{IdleClosed: 1})
}

func TestStreamsAreCountedUntilTheirLastFrame(t *testing.T) {
	const size = 200_000 // more than the client's window
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, size))
	}), "")
	c := dialFramed(t, n.web)
	c.greet()
	c.request(1)
	c.request(3)
	eventually(t, "two", func() bool { return n.Counts() == listener.Counts{listener.Active: 2} })
	if err := c.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is left", func() bool { return n.Counts() == listener.Counts{listener.Active: 1} })
	for _, id := range []uint32{0, 3} {
		if err := c.WriteWindowUpdate(id, 2*size); err != nil {
			t.Fatal(err)
		}
	}
	c.served(3)
	eventually(t, "none is left", func() bool { return n.Counts() == listener.Counts{listener.Idle: 1} })
}

// What the kernel still holds for a slow client is not lost with the
// connection: the client, which goes on granting room, would answer a close
// with bytes that nobody reads, and they would bring a reset.
func TestSlowClientGetsAllOfItsLastResponse(t *testing.T) {
	const size = 400_000
	told := make(chan struct{}) // the answer comes after the goodbye
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		<-told
		w.Write(make([]byte, size))
	}), "")
	c := dialFramed(t, n.web)
	c.greet()
	for _, id := range []uint32{0, 1} {
		if err := c.WriteWindowUpdate(id, 2*size); err != nil && id == 0 {
			t.Fatal(err)
		}
		if id == 0 {
			c.request(1)
		}
	}
	eventually(t, "in flight", func() bool { return n.Counts()[listener.Active] == 1 })
	n.term()
	// The answer to a PING that we have not read: it is known.
	if err := c.WritePing(true, [8]byte([]byte("good bye"))); err != nil {
		t.Fatal(err)
	}
	close(told)
	eventually(t, "all of it is in the kernel", func() bool { return n.Counts()[listener.Active] == 0 })
	for range 100 { // longer than a connection lingers
		if err := c.WriteWindowUpdate(0, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	got := 0
	until(c, func(d *http2.DataFrame) bool {
		got += len(d.Data())
		return d.StreamEnded()
	})
	if got != size {
		t.Errorf("%d octets of %d", got, size)
	}
	c.goodbye(1)
	c.ended()
	c.Close()
	n.drained(nothing)
}
