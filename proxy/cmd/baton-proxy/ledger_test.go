package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// child is a generation with a ledger, on one listener in front of an origin.
type child struct {
	*exec.Cmd
	address string
	ledger  *ledger.Ledger
	next    func(prefix string) string
}

func startWithLedger(t *testing.T, origin string, ledgerFD *os.File) *child {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	config, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	fmt.Fprintf(config, configuration, ln.Addr().(*net.TCPAddr).Port, origin)

	l, err := ledger.Create(ledger.Options{Generation: 12, ServerID: 1, Listeners: []string{"web"}, Routes: []string{"all"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if ledgerFD == nil {
		fd, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ledgerFD = os.NewFile(uintptr(fd), "ledger")
		defer ledgerFD.Close()
	}
	c := &child{Cmd: command(), address: ln.Addr().String(), ledger: l}
	var notify string
	notify, c.next = manager(t)
	c.ExtraFiles = []*os.File{socket, config, ledgerFD}
	c.Env = append(c.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=web", contract.EnvConfigFD+"=4", contract.EnvLedgerFD+"=5",
		contract.EnvGenerationID+"=12", contract.EnvNotifySocket+"="+notify)
	var log bytes.Buffer
	c.Stderr = &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	c.next("READY=1")
	return c
}

// get sends a request on a connection.
func get(t *testing.T, conn net.Conn, path string) {
	t.Helper()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A generation that is killed in the middle of requests leaves its account as it
// was at that instant.
func TestLedgerOfAKilledGeneration(t *testing.T) {
	const finished, hanging = 200, 7
	arrived, proceed := make(chan struct{}, hanging), make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-proceed
		}
		io.WriteString(w, "hello")
	}))
	defer origin.Close()
	defer close(proceed)
	c := startWithLedger(t, origin.Listener.Addr().String(), nil)

	conn := dial(t, c.address)
	r := bufio.NewReader(conn)
	for range finished {
		get(t, conn, "/")
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatal(res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	for range hanging {
		get(t, dial(t, c.address), "/slow")
	}
	for range hanging {
		<-arrived
	}
	c.Process.Signal(syscall.SIGKILL)
	c.Wait()

	reading := c.ledger.Read()
	total := reading.Total()
	if reading.Damage != "" || total.InFlight != hanging || total.Requests != finished || total.Classes[ledger.Status2xx] != finished {
		t.Errorf("%d in flight, %d finished, %d of them 2xx, damage %q; want %d and %d",
			total.InFlight, total.Requests, total.Classes[ledger.Status2xx], reading.Damage, hanging, finished)
	}
	if want := (ledger.Flows{Accepted: 1 + hanging}); total.Flows != want {
		t.Errorf("flows %+v, want %+v", total.Flows, want)
	}
	records := 0
	c.ledger.Requests(func(r *ledger.Record) {
		if r.Status != http.StatusOK || r.Class != ledger.Status2xx {
			t.Errorf("%+v", r)
		}
		records++
	})
	if records != finished {
		t.Errorf("%d records of %d requests", records, finished)
	}
}

// What is no ledger, or not of this version, costs the account and nothing else.
func TestGenerationServesWithoutALedgerItCanKeep(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	defer origin.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := startWithLedger(t, origin.Listener.Addr().String(), null)
	conn := dial(t, c.address)
	get(t, conn, "/")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", res, err)
	}
	c.Process.Signal(syscall.SIGTERM)
	conn.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if log := c.Stderr.(*bytes.Buffer).String(); !strings.Contains(log, "no ledger is kept") {
		t.Errorf("the log says %s", log)
	}
	if r := c.ledger.Read(); r.Written || r.Damage != "" {
		t.Errorf("%+v", r)
	}
}
