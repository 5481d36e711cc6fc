package supervisor

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/contract"
)

// The test binary doubles as the generation: argument 1 is asGeneration,
// argument 2 how it behaves.
const asGeneration = "be-a-generation"

// shifted is a file in the runtime directory, there while a candidate has flows.
const shifted = "shifted"

// awaitFile waits for a file in the runtime directory.
func awaitFile(name string) {
	path := filepath.Join(filepath.Dir(os.Getenv(contract.EnvNotifySocket)), name)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// generationMain is a server by socket activation that knows nothing of Baton.
// It answers every request with its generation's number.
func generationMain(how string) {
	_, number, _ := strings.Cut(os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), "baton.generation=")
	notify := func(text string) {
		c, err := net.Dial("unixgram", os.Getenv(contract.EnvNotifySocket))
		if err == nil {
			c.Write([]byte(text))
			c.Close()
		}
	}
	if how == "say-ready" {
		notify("READY=1")
		return
	}
	if os.Getenv(contract.EnvListenPID) != strconv.Itoa(os.Getpid()) {
		os.Exit(99)
	}
	n, _ := strconv.Atoi(os.Getenv(contract.EnvListenFDs))
	var listeners []net.Listener
	for fd := contract.FirstFD; fd < contract.FirstFD+n; fd++ {
		f := os.NewFile(uintptr(fd), "")
		l, err := net.FileListener(f)
		if err != nil {
			os.Exit(98)
		}
		f.Close()
		listeners = append(listeners, l)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			time.Sleep(200 * time.Millisecond)
		case "/for-ever":
			select {}
		}
		if r.URL.Path == "/export" {
			fmt.Fprint(w, exportSpan(r.URL.Query().Get("trace")))
			return
		}
		if name, ok := strings.CutPrefix(r.URL.Path, "/try/"); ok {
			tryEscape(name, listeners, r.URL.Query())
		}
		fmt.Fprint(w, number)
	})}
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGTERM)
	if how == "keeps-account" {
		keepsAccount(listeners, func() { notify("READY=1") }, stop)
		return
	}
	if bad, ok := misbehave(how); ok {
		server.Handler = bad
	}
	keepLedger(how, server, listeners)
	switch how {
	case "mute-at-first":
		awaitFile("go") // the test says so
		notify("READY=1")
	case "die-unready":
		os.Exit(3)
	case "mute":
		<-stop
		return
	case "die-at-probe":
		notify("READY=1")
		listeners[0].Accept()
		os.Exit(4)
	case "die-when-ready":
		notify("READY=1")
		os.Exit(5)
	case "stop-when-ready":
		notify("READY=1")
		// The signal stops one thread after the other: one that is still awake
		// must not serve.
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		<-stop
		return
	case "never-accept":
		// Answers what the probe sends and accepts nothing else.
		notify("READY=1")
		for range probesEach {
			if c, err := listeners[0].Accept(); err == nil {
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err == nil && r != nil {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				}
				c.Close()
			}
		}
		<-stop
		return
	case "helper":
		// As a Node.js server has to: a child says it, and is gone.
		cmd := exec.Command("/proc/self/exe", asGeneration, "say-ready")
		cmd.Env = os.Environ()
		cmd.Run()
	case "hang-up", "hang-up-soon":
		// Gives its listening sockets up: when it was found good and has flows, or a moment
		// after it was ready, whatever there is by then.
		notify("READY=1")
		go func() {
			if how == "hang-up" {
				awaitFile(shifted)
			} else {
				time.Sleep(300 * time.Millisecond)
			}
			for _, l := range listeners {
				raw, _ := l.(*net.TCPListener).SyscallConn()
				raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
			}
		}()
	case "die-when-told":
		notify("READY=1")
		go func() {
			awaitFile("die")
			os.Exit(6)
		}()
	case "stubborn":
		notify("READY=1")
		go func() {
			for range stop {
			}
		}()
	case "counts-signals":
		notify("READY=1")
		for _, l := range listeners {
			go server.Serve(l)
		}
		countSignals(stop)
		return
	case "gentle":
		notify("READY=1")
		serveGently(server, listeners, stop)
		return
	default:
		notify("READY=1\nSTATUS=serving")
	}
	for _, l := range listeners {
		go server.Serve(l)
	}
	if how == "stubborn" {
		select {}
	}
	<-stop
	server.Shutdown(context.Background())
}

// countSignals ends a second after the first signal, and leaves a line for each.
func countSignals(stop <-chan os.Signal) {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(os.Getenv(contract.EnvNotifySocket)), "signals"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		os.Exit(97)
	}
	<-stop
	fmt.Fprintln(f, "TERM")
	for over := time.After(time.Second); ; {
		select {
		case <-stop:
			fmt.Fprintln(f, "TERM")
		case <-over:
			return
		}
	}
}

// serveGently ends without Server.Shutdown, which drops a request that it has
// just read (conn.serve of net/http asks shuttingDown between reading and
// handling). Where queues are shared, a connection may be accepted at any time.
func serveGently(server *http.Server, listeners []net.Listener, stop <-chan os.Signal) {
	var loops, conns sync.WaitGroup
	server.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			conns.Done()
		}
	}
	for _, l := range listeners {
		loops.Go(func() { server.Serve(l) })
	}
	<-stop
	server.SetKeepAlivesEnabled(false)
	for _, l := range listeners {
		l.Close()
	}
	loops.Wait()
	conns.Wait()
}
