package systemd

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/tests/node"
)

// killed ends processes of the machine's at once, and waits until systemd has other keepers.
func (s *service) killed(pids ...int) {
	s.t.Helper()
	keeper := s.number("baton-keeper", "MainPID")
	args := []string{"kill", "-KILL"}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	s.does(args...)
	s.eventually("another keeper", func() bool {
		is := s.number("baton-keeper", "MainPID")
		return is != 0 && is != keeper && s.property("baton-keeper", "ActiveState") == "active"
	})
}

func (s *service) number(unit, property string) int {
	s.t.Helper()
	n, err := strconv.Atoi(s.property(unit, property))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// A keeper in a unit of its own has a copy of everything with systemd. It may be killed,
// with the supervisor, and with the generation, too: ledgers, keys, what a rollback goes
// back to and connections that wait are there afterwards.
func TestKeeperUnit(t *testing.T) {
	s := prepare(t, "baton-keeper.service")
	if out, err := s.run("systemd-analyze", "verify", "--man=no", "baton-keeper.service"); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
	s.does("systemctl", "start", "baton")
	load := node.Run(t, s.load)
	s.does("systemctl", "reload", "baton")
	s.eventually("the first generation has ended", func() bool { st := s.status(); return st != nil && len(st.Generations) == 1 })
	held := func() int { return s.number("baton-keeper", "NFileDescriptorStore") }
	had := s.kept()
	s.eventually("systemd has as much", func() bool { return held() >= 10 })

	was := s.status()
	s.killed(s.number("baton-keeper", "MainPID"))
	s.said("baton", "another one has everything again")
	if has := s.kept(); !slices.Equal(has, had) {
		t.Errorf("the keeper had %q, and has %q", had, has)
	}
	s.killed(s.number("baton-keeper", "MainPID"), was.PID)
	was = s.succeeded(was)
	if has := s.kept(); !slices.Equal(has, had) {
		t.Errorf("the keeper had %q, and after the death of both %q", had, has)
	}
	if log := s.does("journalctl", "--unit=baton", "--output=cat"); strings.Contains(log, "the keeper has no") {
		t.Errorf("something was lost:\n%s", log)
	}
	s.does("baton", "rollback")
	if is := s.status(); is.Current != was.Current+1 {
		t.Errorf("before a rollback %+v, after it %+v", was, is)
	}
	t.Logf("%d operations, none failed", load.End())

	s.outliveAll()
	s.stop()
	s.eventually("the keeper has ended, and is not started again", func() bool { return s.property("baton-keeper", "ActiveState") == "inactive" })
	s.eventually("systemd has let go of everything", func() bool { return held() == 0 })
}

// kept are the names of what the keeper has.
func (s *service) kept() []string {
	s.t.Helper()
	c, err := keeper.Connect(s.path("/run/baton/keeper.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	all, err := c.All()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, fd := range all {
		unix.Close(fd)
	}
	return slices.Sorted(maps.Keys(all))
}

// said waits for words in a unit's log.
func (s *service) said(unit, words string) {
	s.t.Helper()
	s.eventually("the log says: "+words, func() bool {
		return strings.Contains(s.does("journalctl", "--unit="+unit, "--output=cat"), words)
	})
}

// outliveAll has clients wait at a generation that does nothing, ends it and who would
// know of them, and wants them to be answered.
func (s *service) outliveAll() {
	s.t.Helper()
	s.eventually("one generation is left", func() bool { st := s.status(); return st != nil && len(st.Generations) == 1 })
	st := s.status()
	pid := st.Generations[0].PID
	s.does("kill", "-STOP", strconv.Itoa(pid))
	s.eventually("it has stopped", func() bool {
		return strings.Contains(s.does("cat", fmt.Sprintf("/proc/%d/stat", pid)), ") T ")
	})
	var clients []net.Conn
	for range 20 {
		c, err := net.DialTimeout("tcp", s.load.HTTP, node.Enough)
		if err != nil {
			s.t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(node.Enough))
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: unit\r\n\r\n"); err != nil {
			s.t.Fatal(err)
		}
		clients = append(clients, c)
	}
	s.killed(st.PID, s.number("baton-keeper", "MainPID"), pid)
	for _, c := range clients {
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			s.t.Errorf("who waited: %v", err)
			continue
		}
		res.Body.Close()
	}
}
