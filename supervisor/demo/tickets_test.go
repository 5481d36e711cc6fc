package demo

import (
	"crypto/tls"
	"net"
	"testing"
)

// TestTicketOfAFailedHandshake has a handshake fail that would have resumed a session, as
// where the process is killed. crypto/tls throws the ticket away then, and the next
// connection that resumes nothing is no fault of the server's.
func TestTicketOfAFailedHandshake(t *testing.T) {
	pair, pool := certified(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	serve := make(chan bool) // false: the process dies
	go func() {
		for whole := range serve {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if whole {
				config := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
				config.SetSessionTicketKeys([][32]byte{{1}})
				secure := tls.Server(conn, config)
				secure.Write([]byte("answer"))
			}
			conn.Close()
		}
	}()
	defer close(serve)
	c := &client{tlsWeb: l.Addr().String(), roots: pool, connect: dialTCP, tickets: newTickets()}
	once := func(whole bool) (resumed bool, err error) {
		serve <- whole
		conn, err := c.dialTLS(&attempt{}, "http/1.1")
		if err != nil {
			return false, err
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 10)); err != nil {
			return false, err
		}
		c.answered(true)
		return conn.(*tls.Conn).ConnectionState().DidResume, nil
	}
	for i, want := range []struct{ whole, resumed bool }{{true, false}, {true, true}, {false, false}, {true, false}, {true, true}} {
		resumed, err := once(want.whole)
		if (err == nil) != want.whole || resumed != want.resumed {
			t.Errorf("connection %d: resumed %t, %v", i+1, resumed, err)
		}
	}
}
