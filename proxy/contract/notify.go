package contract

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Notify sends assignments such as READY=1 to the service manager, in one
// datagram so that they are seen together. Without NOTIFY_SOCKET nobody asked,
// and it does nothing. Where the manager does not read, it waits until ctx is done: the
// socket's queue has room for net.unix.max_dgram_qlen datagrams, usually ten.
func Notify(ctx context.Context, state ...string) error {
	name := os.Getenv(EnvNotifySocket)
	if name == "" {
		return nil
	}
	// A leading @ is the abstract namespace, to systemd and to package net alike.
	if name[0] != '/' && name[0] != '@' {
		return fmt.Errorf("notify: %s is %q, neither a path nor abstract", EnvNotifySocket, name)
	}
	for _, s := range state {
		if strings.Contains(s, "\n") || !strings.Contains(s, "=") {
			return fmt.Errorf("notify: %q is no assignment", s)
		}
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer conn.Close()
	done := context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Now()) })
	defer done()
	if _, err := conn.Write([]byte(strings.Join(state, "\n"))); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}
