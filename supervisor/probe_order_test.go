package supervisor

import (
	"net"
	"slices"
	"testing"
)

// ordered is a connection that writes down when it is closed.
type ordered struct {
	net.Conn
	done *[]string
}

func (o ordered) Read(b []byte) (int, error) { return copy(b, "x"), nil }

func (o ordered) Close() error {
	*o.done = append(*o.done, "closed")
	return nil
}

// The port of a probe that was answered may be a client's as soon as it is closed: the
// program must not send that to the candidate.
func TestProbeIsForgottenBeforeItsPortIsFree(t *testing.T) {
	for _, answered := range []bool{true, false} {
		var done []string
		c := &steeredConn{Conn: ordered{done: &done}, unsteer: func() error {
			done = append(done, "forgotten")
			return nil
		}}
		if answered {
			c.Read(make([]byte, 1))
		}
		c.Close()
		want := []string{"closed", "forgotten"} // its handshake may not be over
		if answered {
			slices.Reverse(want)
		}
		if !slices.Equal(done, want) {
			t.Errorf("answered: %v: %v, want %v", answered, done, want)
		}
	}
}
