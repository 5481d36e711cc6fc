package demo

import (
	"fmt"
	"net"
)

// echoDatagrams makes the origin echo datagrams, too, at an address that it returns.
func (o *Origin) echoDatagrams(address string) (string, error) {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return "", fmt.Errorf("start origin: %w", err)
	}
	o.datagrams = c
	o.running.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return // closed
			}
			c.WriteTo(b[:n], from)
		}
	})
	return c.LocalAddr().String(), nil
}
