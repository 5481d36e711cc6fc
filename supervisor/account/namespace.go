package account

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// namespaceEvents are counters of the network namespace, as metrics name them and as
// /proc/net/netstat does (net/ipv4/proc.c). They are of all its sockets.
var namespaceEvents = map[string]string{
	"listen_overflows":       "ListenOverflows", // an accept queue was full
	"listen_drops":           "ListenDrops",     // that, and whatever else a listening socket let fall
	"half_open_overflows":    "TCPReqQFullDrop", // too many handshakes were half open, and no cookie was sent
	"half_open_cookies":      "TCPReqQFullDoCookies",
	"migrations":             "TCPMigrateReqSuccess",
	"migrations_that_failed": "TCPMigrateReqFailure",
}

// Namespace reads them of this thread's namespace, in which the listeners are.
func Namespace() (map[string]uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return nil, err
	}
	return parseNamespace(string(text))
}

func parseNamespace(text string) (map[string]uint64, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if len(fields) != len(names) {
			break
		}
		all := make(map[string]uint64, len(namespaceEvents))
		for event, name := range namespaceEvents {
			if i := slices.Index(names, name); i > 0 {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				all[event] = n
			}
		}
		return all, nil
	}
	return nil, fmt.Errorf("/proc/net/netstat has no two lines of TcpExt that go together")
}

// Overflows are the handshakes that the namespace has let fall for want of room.
func Overflows(namespace map[string]uint64) uint64 {
	return namespace["listen_overflows"] + namespace["half_open_overflows"]
}
