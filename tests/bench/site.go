package main

import (
	"bufio"
	"context"
	"embed"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"
)

//go:embed testdata
var testdata embed.FS

// site is what a configuration in testdata is made from.
type site struct {
	Dir          string // of this peer alone; processes of any user may pass
	Web, Raw     string // host:port to listen on, for HTTP and for TCP
	Origin, Echo string // host:port of the backends
	Generation   int    // shown to clients as the header Baton-Generation

	// IdleCloseOnResponse is HAProxy's option of this name.
	IdleCloseOnResponse bool
}

// newSite makes a directory below dir and finds two free ports.
func newSite(dir, name, origin, echo string) (site, error) {
	s := site{Dir: filepath.Join(dir, name), Origin: origin, Echo: echo}
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		return s, err
	}
	var err error
	if s.Web, err = freePort(); err == nil {
		s.Raw, err = freePort()
	}
	return s, err
}

// freePort finds a loopback port that nobody has and that no client gets by
// chance: a peer that stops listening for a moment must find it free again.
func freePort() (string, error) {
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.N(12000)))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address, nil
		}
	}
	return "", fmt.Errorf("no free port from 20000 to 31999 in 100 attempts")
}

// write renders a file of testdata for a generation and returns its path.
func (s site) write(name string, generation int) (string, error) {
	s.Generation = generation
	t, err := template.ParseFS(testdata, "testdata/"+name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.Dir, name)
	// A new file in its place: whoever reads the old one reads all of it.
	f, err := os.Create(path + ".new")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := t.Execute(f, s); err != nil {
		return "", err
	}
	return path, os.Rename(f.Name(), path)
}

// inARow is how many new connections one after the other must be answered by a
// generation before it counts as the one that serves.
const inARow = 8

// await returns when new connections are answered by the generation. It fails
// after 20 seconds.
func (s site) await(ctx context.Context, generation int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	got, err := 0, error(nil)
	for n := 0; n < inARow; {
		if got, err = s.ask(); err == nil && got == generation {
			n++
			continue
		}
		n = 0
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for generation %d on %s: generation %d answers (%v): %w", generation, s.Web, got, err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// ask returns the generation that answers a new connection.
func (s site) ask() (int, error) {
	c, err := net.DialTimeout("tcp", s.Web, time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: bench.test\r\nBaton-Probe: 1\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return strconv.Atoi(resp.Header.Get("Baton-Generation"))
}
