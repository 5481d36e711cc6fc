package balance

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/supervisor/idkeys"
	"github.com/baton-mesh/baton/tests/node"
)

// answers has a real answer each datagram with its name.
func (l *lab) answers(r *real) {
	l.t.Helper()
	var socket *net.UDPConn
	l.do(r.host, func() (err error) {
		socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, vipPort)))
		return err
	})
	l.t.Cleanup(func() { socket.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			_, from, err := socket.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			socket.WriteToUDPAddrPort([]byte(r.name), from)
		}
	}()
}

// askNamed sends a packet of QUIC with this connection ID from a port of its own, and
// returns who answers.
func (l *lab) askNamed(id []byte) string {
	l.t.Helper()
	var socket *net.UDPConn
	l.do(l.client, func() (err error) {
		socket, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, vipPort)))
		return err
	})
	defer socket.Close()
	packet := append([]byte{0x40}, id...)
	packet = append(packet, make([]byte, 64)...)
	answer := make([]byte, 64)
	for end := time.Now().Add(node.Enough); ; {
		if _, err := socket.Write(packet); err != nil {
			l.t.Fatal(err)
		}
		socket.SetReadDeadline(time.Now().Add(time.Second))
		n, err := socket.Read(answer)
		if err == nil {
			return string(answer[:n])
		}
		if time.Now().After(end) {
			l.t.Fatal("nobody answers")
		}
	}
}

// whoAnswers asks from many ports, by IDs of one node under a config.
func (l *lab) whoAnswers(keys *quicid.Keys, config quicid.Config, serverID uint32) (all []string) {
	l.t.Helper()
	for range 12 {
		var id [quicid.Len]byte
		var random [quicid.RandomLen]byte
		rand.Read(random[:])
		if !keys.Encode(&id, config, quicid.ID{ServerID: serverID, Slot: 3}, random) {
			l.t.Fatalf("no key for config %d", config)
		}
		if who := l.askNamed(id[:]); !slices.Contains(all, who) {
			all = append(all, who)
		}
	}
	return all
}

// TestKeysOfConnectionIDs: the balancer finds the node by encrypted IDs as soon as the
// file has their key, also when it is another process, which may find a file that it has
// to refuse, and no more when it is taken out.
func TestKeysOfConnectionIDs(t *testing.T) {
	l := newLab(t, 3)
	for _, r := range l.reals {
		l.answers(r)
	}
	one, two := quicid.Key{1, 15: 1}, quicid.Key{2, 15: 2}
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{1: one, 2: two})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cid.keys")
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file+".next", []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".next", file); err != nil {
			t.Fatal(err)
		}
	}
	lineOf := func(config int, key quicid.Key) string {
		return fmt.Sprintf("%d %s", config, hex.EncodeToString(key[:]))
	}
	waitRead := func(what string, as func(*idkeys.Status) bool) {
		t.Helper()
		node.Eventually(t, what, func() bool {
			st, err := l.admin().BalancerStatus(t.Context())
			return err == nil && st.ConnectionIDs != nil && as(st.ConnectionIDs)
		})
	}
	reads := func(configs ...int) func(*idkeys.Status) bool {
		return func(st *idkeys.Status) bool { return slices.Equal(st.Read, configs) && st.Problem == "" }
	}
	named := func(config quicid.Config) {
		t.Helper()
		for i, r := range l.reals {
			if got := l.whoAnswers(keys, config, uint32(i+1)); !slices.Equal(got, []string{r.name}) {
				t.Errorf("%v answer for %s under config %d", got, r.name, config)
			}
		}
	}

	write(lineOf(1, one))
	l.protocol, l.extra = "protocols: [tcp, udp], quic: true", fmt.Sprintf("connection_ids: {key_file: %s}\n", file)
	l.start()
	for _, r := range l.reals {
		l.await(r.name, "up")
	}
	named(quicid.Readable)
	named(1)
	if got := l.whoAnswers(keys, 2, 1); len(got) < 2 {
		t.Errorf("without the key of config 2 %v answers", got)
	}
	write(lineOf(1, one), lineOf(2, two)+" encode")
	waitRead("a second key", reads(1, 2))
	named(1)
	named(2)

	l.kill()
	write(lineOf(1, two)) // what is there is all that the next one has
	l.start()
	waitRead("another key for a config is refused", func(st *idkeys.Status) bool {
		return strings.Contains(st.Problem, "config 1 has another key than before") && slices.Equal(st.Read, []int{1, 2})
	})
	named(1)
	named(2)
	write(lineOf(2, two))
	waitRead("the first key is taken out", reads(2))
	named(2)
	if got := l.whoAnswers(keys, 1, 1); len(got) < 2 {
		t.Errorf("without the key of config 1 %v answers", got)
	}
	if out, code := l.command("status"); code != 0 || !strings.Contains(out, "connection IDs: read by keys 2") {
		t.Errorf("status: %s", out)
	}
}
