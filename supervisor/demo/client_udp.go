package demo

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"
)

// datagramPatience is how long silence lasts before a datagram counts as lost.
const datagramPatience = 10 * time.Second

// udpFlow exchanges datagrams on one flow for as long as the attempt says. None may
// be lost: nothing is sent twice.
func (c *client) udpFlow(a *attempt) error {
	conn, err := net.Dial("udp", c.udp)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	a.Dialled = time.Now()
	a.Flow = Flow{udpAddrPort(conn.LocalAddr()), udpAddrPort(conn.RemoteAddr())}
	got := make([]byte, 2048)
	for i := uint32(0); time.Since(a.Start) < a.long; i++ {
		message := patternBytes(a.seed+i, 300)
		sent := time.Now()
		if _, err := conn.Write(message); err != nil {
			return fmt.Errorf("send datagram %d: %w", i, err)
		}
		conn.SetReadDeadline(sent.Add(datagramPatience))
		n, err := conn.Read(got)
		if err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		if !bytes.Equal(got[:n], message) {
			return errors.New("not what was sent")
		}
		a.waited(sent)
		time.Sleep(slowTick)
	}
	return nil
}
