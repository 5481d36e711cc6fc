package supervisor

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/state"
)

// Who is connected to an old generation keeps it, and its connection, until it
// leaves or the time is over.
func TestLinger(t *testing.T) {
	for name, test := range map[string]struct {
		linger time.Duration
		leave  bool
	}{
		"client leaves":     {time.Hour, true},
		"client stays long": {300 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := serve(t, conf(t, "serve", func(c *config.Config) { c.Release.Linger = test.linger }))
			conn, err := net.Dial("tcp", n.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if who, err := ask(conn, "/"); err != nil || who != "1" {
				t.Fatalf("%q, %v", who, err)
			}
			if res := n.release(n.conf, Request{}); res.Outcome != Passed {
				t.Fatalf("%+v", res)
			}
			if who, err := n.get("/"); err != nil || who != "2" {
				t.Errorf("a new connection: %q, %v", who, err)
			}
			if test.leave {
				for range 10 {
					if who, err := ask(conn, "/"); err != nil || who != "1" {
						t.Fatalf("the kept connection: %q, %v", who, err)
					}
				}
				conn.Close()
			}
			eventually(t, "the old generation ends", func() bool { return n.generation(1) == nil })
		})
	}
}

// That a generation drains is on record before its slot is empty, also where its release
// has not been written down as ended: nothing may go back to it.
func TestSlotIsEmptyOnceTheDrainIsOnRecord(t *testing.T) {
	c := conf(t, "serve")
	emptied := make(chan string, 1)
	n := serve(t, c, func(o *Options) {
		o.Reached = func(transition string) {
			switch transition {
			case "release ends":
				if st, _ := state.In(c.RuntimeDir).Load(); st.NextRelease == 2 {
					return // of the first generation
				}
				select { // the record is late
				case was := <-emptied:
					emptied <- was
				case <-time.After(time.Minute):
				}
			case "slot emptied":
				st, err := state.In(c.RuntimeDir).Load()
				select {
				case emptied <- fmt.Sprint(st.Generations[0].ID, st.Generations[0].State, err):
				default:
				}
			}
		}
	})
	if res := n.release(n.conf, Request{}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	select {
	case was := <-emptied:
		if want := fmt.Sprint(1, Draining, nil); was != want {
			t.Errorf("on record: %s, want %s", was, want)
		}
	default:
		t.Error("the slot was not emptied within a minute")
	}
}

// A supervisor that ends does not wait for who may leave.
func TestStoppingDoesNotLinger(t *testing.T) {
	n := serve(t, conf(t, "serve", func(c *config.Config) { c.Release.Linger = time.Hour }))
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if who, err := ask(conn, "/"); err != nil || who != "1" {
		t.Fatalf("%q, %v", who, err)
	}
	if res := n.release(n.conf, Request{}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	if err := n.stop(); err != nil { // hangs until the test's own timeout, if it lingers
		t.Error(err)
	}
}
