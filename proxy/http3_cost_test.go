package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
)

// asHTTP3Client makes the test binary the other side of TestHTTP3Cost.
const asHTTP3Client = "BATON_HTTP3_CLIENT"

// TestHTTP3Cost measures what a request of HTTP/3 takes of the proxy alone, on
// connections that stay open and on a new one each: CPU time, and what is allocated.
// Clients and origin are another process. BATON_TEST_COST is in how many rounds; with
// -cpuprofile and -memprofile go test writes where it goes.
func TestHTTP3Cost(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("BATON_TEST_COST"))
	if err != nil {
		t.Skip("measures: make cost")
	}
	other := startHTTP3Client(t)
	_, w := datagramLedger(t)
	n := startWith(t, func(o *proxy.Options) { o.Ledger, o.ServerID, o.Slot = w, 77, 3 }, other.origin, "", quicToo, func(c *config.Config) {
		c.Upstreams[0].MaxIdle = 256
	})
	for _, kind := range []struct {
		name     string
		requests int
	}{{"kept", 20_000}, {"new", 1_000}} {
		other.ask(t, kind.name, n.udp, kind.requests/10) // what is slow at first
		var cpu, allocations, octets []float64
		for range rounds {
			was, used := new(runtime.MemStats), cpuTime(t)
			runtime.ReadMemStats(was)
			other.ask(t, kind.name, n.udp, kind.requests)
			is := new(runtime.MemStats)
			runtime.ReadMemStats(is)
			per := func(x float64) float64 { return x / float64(kind.requests) }
			cpu = append(cpu, per(float64(cpuTime(t)-used)/1e3))
			allocations = append(allocations, per(float64(is.Mallocs-was.Mallocs)))
			octets = append(octets, per(float64(is.TotalAlloc-was.TotalAlloc)))
		}
		middle := func(of []float64) float64 { return slices.Sorted(slices.Values(of))[len(of)/2] }
		t.Logf("%-4s connections: %.1f µs of CPU time a request (%.1f to %.1f), %.1f allocations, %.0f octets", kind.name, middle(cpu), slices.Min(cpu), slices.Max(cpu), middle(allocations), middle(octets))
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// http3Client is the process with clients and origin.
type http3Client struct {
	origin string
	in     io.Writer
	out    *bufio.Scanner
}

func startHTTP3Client(t *testing.T) *http3Client {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asHTTP3Client+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	c := &http3Client{in: in, out: bufio.NewScanner(out)}
	if !c.out.Scan() {
		t.Fatal("the clients have ended")
	}
	c.origin = c.out.Text()
	return c
}

// ask has so many requests sent to an address.
func (c *http3Client) ask(t *testing.T, kind, address string, requests int) {
	t.Helper()
	fmt.Fprintln(c.in, kind, address, requests)
	if !c.out.Scan() || c.out.Text() != "done" {
		t.Fatalf("the clients say %q", c.out.Text())
	}
}

// runHTTP3Client is the process: it prints the origin's address, and for each line of
// input sends requests.
func runHTTP3Client() {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 512)) }))
	fmt.Println(origin.Listener.Addr())
	const connections, streams = 8, 4
	var kept []*http3.Transport
	for range connections {
		kept = append(kept, oneConnection())
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		left := new(atomic.Int64)
		n, _ := strconv.Atoi(words[2])
		left.Store(int64(n))
		var failed atomic.Value
		var all sync.WaitGroup
		for i := range connections * streams {
			if words[0] == "new" && i >= connections {
				break
			}
			all.Go(func() {
				for left.Add(-1) >= 0 {
					tr := kept[i%connections]
					if words[0] == "new" {
						tr = oneConnection()
					}
					if err := getOne(tr, "https://"+words[1]+"/"); err != nil {
						failed.Store(err)
						return
					}
					if words[0] == "new" {
						tr.Close()
					}
				}
			})
		}
		all.Wait()
		if err := failed.Load(); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("done")
	}
}

func oneConnection() *http3.Transport {
	secure := clientTLS()
	secure.InsecureSkipVerify = true // the certificate is the other process's
	return &http3.Transport{
		TLSClientConfig: secure,
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: 30 * time.Second, MaxIdleTimeout: 10 * time.Minute},
		Dial: func(ctx context.Context, address string, secure *tls.Config, conf *quic.Config) (*quic.Conn, error) {
			to, err := net.ResolveUDPAddr("udp", address)
			if err != nil {
				return nil, err
			}
			socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				return nil, err
			}
			tr := &quic.Transport{Conn: socket}
			conn, err := tr.DialEarly(ctx, to, secure, conf)
			if err != nil {
				socket.Close()
				return nil, err
			}
			context.AfterFunc(conn.Context(), func() { tr.Close(); socket.Close() })
			return conn, nil
		},
	}
}

func getOne(tr *http3.Transport, url string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != 512 {
		return fmt.Errorf("%d octets, %v", n, err)
	}
	return nil
}
