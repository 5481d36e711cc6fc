package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor/notify"
)

// proxies runs Baton's own proxy without Baton's supervisor and steering, so
// that only the way of replacing it differs.
type proxies struct {
	site
	tools
	notify *notify.Socket
	ready  chan int // the process that says READY=1
	heard  sync.WaitGroup
	// shared says that the new process listens beside the old one with
	// SO_REUSEPORT; otherwise it listens when the old one has ended.
	shared bool

	mu      sync.Mutex
	current *child
	old     []*child      // told to end
	reaped  time.Duration // CPU time of those that have
}

func startShared(t tools, s site) (server, error)    { return startProxies(t, s, true) }
func startRestarted(t tools, s site) (server, error) { return startProxies(t, s, false) }

func startProxies(t tools, s site, shared bool) (_ server, err error) {
	p := &proxies{site: s, tools: t, shared: shared, ready: make(chan int, 16)}
	if p.notify, err = notify.Listen(filepath.Join(s.Dir, "notify")); err != nil {
		return nil, err
	}
	p.heard.Go(p.hear)
	if p.current, err = p.launch(1); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *proxies) hear() {
	for {
		m, err := p.notify.Receive()
		if err != nil {
			return // closed
		}
		if m.Fields["READY"] == "1" {
			p.ready <- m.PID
		}
	}
}

// launch starts a process and returns when it is ready.
func (p *proxies) launch(generation int) (*child, error) {
	config, err := p.write("baton.yaml", generation)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.proxy, "--config", config)
	if p.shared {
		files, err := p.sockets()
		if err != nil {
			return nil, err
		}
		f, err := os.Open(config)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		// Only the process itself knows the number that LISTEN_PID must have.
		cmd = exec.Command("/bin/sh", "-c", contract.EnvListenPID+`=$$ exec "$0"`, p.proxy)
		cmd.ExtraFiles = files
		cmd.Env = []string{contract.EnvListenFDs + "=2", contract.EnvListenFDNames + "=web:raw",
			contract.EnvConfigFD + "=" + strconv.Itoa(contract.FirstFD+2)}
	}
	cmd.Env = append(append(os.Environ(), cmd.Env...), contract.EnvNotifySocket+"="+p.notify.Path(),
		contract.EnvGenerationID+"="+strconv.Itoa(generation))
	c, err := startChild(cmd, config+".log")
	if err != nil {
		return nil, err
	}
	return c, p.awaitReady(c)
}

func (p *proxies) awaitReady(c *child) error {
	timeout := time.After(10 * time.Second)
	for {
		select {
		case pid := <-p.ready:
			if pid == c.pid() {
				return nil
			}
		case <-c.ended:
			return c.signal(syscall.SIGTERM) // says how it ended
		case <-timeout:
			return errors.Join(fmt.Errorf("%s: not ready in 10 s", p.proxy), c.stop())
		}
	}
}

// sockets makes listening sockets beside those of the same address.
func (p *proxies) sockets() ([]*os.File, error) {
	var files []*os.File
	for _, address := range []string{p.Web, p.Raw} {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		lc.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			controlErr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			})
			return errors.Join(controlErr, err)
		}
		l, err := lc.Listen(context.Background(), "tcp", address)
		if err != nil {
			return nil, err
		}
		f, err := l.(*net.TCPListener).File()
		l.Close() // f has the socket
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func (p *proxies) replace(_ context.Context, generation int) error {
	old := p.current
	if !p.shared {
		if err := old.signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := old.wait(30 * time.Second); err != nil {
			return err
		}
	}
	next, err := p.launch(generation)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = next
	p.old = append(p.old, old)
	if p.shared {
		return old.signal(syscall.SIGTERM)
	}
	return nil
}

// reap forgets the old processes that have ended. p.mu is held.
func (p *proxies) reap() {
	var left []*child
	for _, c := range p.old {
		select {
		case <-c.ended:
			p.reaped += c.cpu()
		default:
			left = append(left, c)
		}
	}
	p.old = left
}

func (p *proxies) roots() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reap()
	pids := []int{p.current.pid()}
	for _, c := range p.old {
		pids = append(pids, c.pid())
	}
	return pids
}

func (p *proxies) spent() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reaped
}

func (p *proxies) stop() error {
	var errs []error
	for _, c := range append(p.old, p.current) {
		if c != nil {
			errs = append(errs, c.stop())
		}
	}
	errs = append(errs, p.notify.Close())
	p.heard.Wait()
	return errors.Join(errs...)
}
