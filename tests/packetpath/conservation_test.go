package packetpath

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/judge"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

// Every connection of every client is in the books, once: the kernel's account
// and the generations' ledgers agree to the flow over releases, with SYN cookies
// off, in need and always, and scans and strays are none.
func TestConservation(t *testing.T) {
	releases := 2
	if os.Getenv("BATON_TEST_GATES") != "" {
		releases = 17 // three times
	}
	for _, cookies := range []string{"0", "1", "2"} {
		t.Run("tcp_syncookies="+cookies, func(t *testing.T) {
			hosts := testnet.New(t, "client", "node")
			client, host := hosts[0], hosts[1]
			err := host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(cookies), 0) })
			if err != nil {
				t.Fatal(err)
			}
			n, c := startNode(t, host)
			var connected, failed atomic.Uint64
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var clients sync.WaitGroup
			uses := []func(net.Conn) error{askOnce, askTwice, abort, leave}
			if cookies == "2" {
				uses = uses[:3] // see repeated
			}
			connect := func(to netip.AddrPort, kind string, do use) {
				clients.Go(func() {
					for ctx.Err() == nil {
						conn, err := client.Dial("tcp", to)
						if err != nil {
							failed.Add(1)
							t.Log(err)
							continue
						}
						connected.Add(1)
						if err := do(conn); err != nil {
							failed.Add(1)
							t.Logf("%s: %v", kind, err)
						}
						conn.Close()
					}
				})
			}
			for _, do := range uses {
				connect(n.HTTP, "HTTP/1.1", do)
			}
			for to, all := range kinds(n, releases > 2) {
				for kind, do := range all {
					if cookies == "2" && to == n.TCP.String() {
						continue // its flows are not summed: see below
					}
					connect(netip.MustParseAddrPort(to), kind, do)
				}
			}
			clients.Go(func() {
				// Not the ports of clients: a SYN with the addresses of one that is over
				// makes a connection of it again (TestLastAckIsACookie in bpf/flows).
				for port := uint16(20000); ctx.Err() == nil; port = 20000 + (port-20000+1)%12000 {
					for _, to := range []netip.AddrPort{n.HTTP, n.TCP} {
						if err := segment(client, to, port, []byte{0x02, 0x10, 0x11, 0x04, 0x00}[port%5]); err != nil {
							t.Error(err)
							return
						}
					}
					time.Sleep(time.Millisecond)
				}
			})

			for range releases {
				res, err := c.Release(t.Context(), supervisor.Request{})
				if err != nil {
					t.Fatal(err)
				}
				if res.Outcome != supervisor.Passed || finding(res, "conservation").State != judge.Held {
					t.Fatalf("%+v, %+v", res, res.Verdict)
				}
				t.Log(finding(res, "conservation").Words)
			}
			stop()
			clients.Wait()
			if failed.Load() > 0 {
				t.Errorf("%d of %d connections failed", failed.Load(), connected.Load())
			}

			// Two probes of each of the three listeners before the shift, one after.
			want := connected.Load() + 6 + 9*uint64(releases)
			if cookies == "2" {
				want -= 2 + 3*uint64(releases) // those of raw leave without a word
			}
			var established uint64
			node.Eventually(t, "every connection is counted", func() bool {
				st, err := c.Status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				established = 0
				for _, l := range st.Listeners {
					if cookies == "2" && l.Name == "raw" {
						continue
					}
					established += l.Flows["established"]
				}
				return established >= want
			})
			spare := uint64(0)
			if cookies == "2" {
				spare = repeated(t, client) + repeated(t, host)
			}
			if established > want+spare {
				t.Errorf("%d flows were established, %d clients and probes connected, and at most %d more are of repeated segments", established, want, spare)
			}
			t.Logf("%d connections in %d releases, %d flows; %d segments were repeated with cookies always", want, releases, established, spare)
		})
	}
}

// repeated is how many segments of TCP a host has sent more than once. With
// cookies always each can make a connection that no client knows of, and so can
// the last ACK of a client that leaves without a word, which two segments call
// for when they overtake each other (TestLastAckIsACookie in bpf/flows).
func repeated(t *testing.T, host *testnet.Host) (n uint64) {
	t.Helper()
	err := host.Do(func() error {
		snmp, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(snmp)) {
			if !strings.HasPrefix(line, "Tcp:") {
				continue
			}
			fields := strings.Fields(line)
			if names == nil {
				names = fields
				continue
			}
			n, err = strconv.ParseUint(fields[slices.Index(names, "RetransSegs")], 10, 64)
			return err
		}
		return errors.New("no counters of TCP")
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func finding(res supervisor.Result, gate string) (f judge.Finding) {
	if res.Verdict != nil {
		for _, f = range res.Verdict.Findings {
			if f.Gate == gate {
				return f
			}
		}
	}
	return judge.Finding{}
}

func ask(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func askOnce(conn net.Conn) error { return ask(conn) }

// askTwice keeps its connection over a while in which it may be told to leave,
// and then it asks no more.
func askTwice(conn net.Conn) error {
	if err := ask(conn); err != nil {
		return err
	}
	time.Sleep(20 * time.Millisecond)
	return nil
}

func leave(net.Conn) error { return nil }

func abort(conn net.Conn) error { return conn.(*net.TCPConn).SetLinger(0) }

// segment sends one TCP segment from a host without a connection behind it.
func segment(from *testnet.Host, to netip.AddrPort, port uint16, flags byte) error {
	var b [20]byte
	binary.BigEndian.PutUint16(b[0:], port)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], 12345)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65535)
	src, dst := from.Addr4.As4(), to.Addr().As4()
	sum := uint32(unix.IPPROTO_TCP + len(b))
	for _, part := range [][]byte{src[:], dst[:], b[:]} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return from.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b[:], 0, &unix.SockaddrInet4{Addr: dst})
	})
}
