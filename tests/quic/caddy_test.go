package quic

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/program"
)

// caddyVersion is what is measured beside: a server in Go that has HTTP/3 by quic-go,
// too.
const caddyVersion = "v2.11.9"

const caddyMain = `package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() { caddycmd.Main() }
`

// caddyfile has it serve HTTP/3 as the site does, and keep as many connections to the
// origin. It writes no access log unless it is told to.
const caddyfile = `{
	admin off
	auto_https off
	persist_config off
	log {
		level ERROR
	}
}
https://%s {
	bind 127.0.0.1
	tls %s %s
	reverse_proxy %s {
		transport http {
			keepalive_idle_conns_per_host 256
		}
	}
}
`

// startCaddy serves what the site does, and returns its address and process. path is the
// executable, or 1: then it is built, in a module of its own, of which none is Baton's.
func startCaddy(t *testing.T, s *site, origin, path string) (address string, pid int) {
	t.Helper()
	dir := t.TempDir()
	if path == "1" {
		path = filepath.Join(dir, "caddy")
		if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(caddyMain), 0o600); err != nil {
			t.Fatal(err)
		}
		program.Go(t, dir, []string{"mod", "init", "caddy"}, []string{"get", "github.com/caddyserver/caddy/v2@" + caddyVersion}, []string{"mod", "tidy"}, []string{"build", "-o", path, "."})
	}
	node.Eventually(t, "a port is free for TCP and UDP", func() bool {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return false
		}
		defer free.Close()
		address = free.Addr().String()
		too, err := net.ListenPacket("udp", address)
		if err != nil {
			return false
		}
		return too.Close() == nil
	})
	name := strings.Replace(address, "127.0.0.1", "demo.test", 1)
	file := filepath.Join(dir, "Caddyfile")
	text := fmt.Sprintf(caddyfile, name, filepath.Join(s.Dir, "cert.pem"), filepath.Join(s.Dir, "key.pem"), origin)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "run", "--config", file, "--adapter", "caddyfile")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir)
	program.Start(t, cmd)
	client := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "demo.test"}}
	defer client.Close()
	node.Eventually(t, "Caddy answers", func() bool {
		req, _ := http.NewRequest(http.MethodGet, "https://"+address+"/small?seed=1", nil)
		req.Host = name
		res, err := client.RoundTrip(req)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return address, cmd.Process.Pid
}
