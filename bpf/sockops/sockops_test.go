package sockops

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/scratch"
	"github.com/baton-mesh/baton/tests/testnet"
)

// much is enough for segments of full size and trains of them.
const much = 1 << 20

const linkMTU = 1500

// Segments are as they should be, from the first to the last, on both families and
// in both byte orders.
func TestSegments(t *testing.T) {
	for _, tt := range []struct {
		name  string
		o     Options
		v6    bool
		shown string
	}{
		{"IPv4", Options{ServerID: 0x01020304}, false, "\x01\x02\x03\x04"},
		{"IPv6", Options{ServerID: 0x01020304}, true, "\x01\x02\x03\x04"},
		{"host order", Options{ServerID: 0x01020304, HostOrder: true}, false, "\x04\x03\x02\x01"},
		{"greatest number", Options{ServerID: 0xffffffff}, false, "\xff\xff\xff\xff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.o, true, true)
			l.exchange(l.listen(l.addr(tt.v6), l.tell), much)
			for i, s := range l.segments(true) {
				answer := s.Option(KindAnswer)
				if first := s.Flags&testnet.SYN != 0; first && string(answer) != tt.shown || !first && answer != nil || s.Option(KindEcho) != nil {
					t.Fatalf("segment %d of the server has the options % x", i, s.Options)
				}
			}
			l.wantEcho(tt.shown)
			l.wantCounts(Counts{Answered: 1, Learned: 1, Echoed: 1})
		})
	}
}

func (l *lab) addr(v6 bool) netip.Addr {
	if v6 {
		return l.node.Addr6
	}
	return l.node.Addr4
}

// wantEcho wants the number in every segment of the client but the SYN, and room
// made for it: the largest segments fill the link.
func (l *lab) wantEcho(shown string) {
	l.t.Helper()
	largest, ended := 0, map[netip.AddrPort]bool{}
	for i, s := range l.segments(false) {
		// A socket in TIME_WAIT, that acknowledges a second time, has no option.
		if ended[s.From] && s.Flags&testnet.FIN == 0 && len(s.Payload) == 0 {
			continue
		}
		ended[s.From] = s.Flags&testnet.FIN != 0
		if first := s.Flags&testnet.SYN != 0; first && s.Option(KindEcho) != nil || !first && string(s.Option(KindEcho)) != shown {
			l.t.Fatalf("segment %d of the client has the options % x", i, s.Options)
		}
		if s.Option(KindAnswer) != nil {
			l.t.Fatalf("segment %d of the client has a server's option", i)
		}
		head := 20
		if s.From.Addr().Is6() {
			head = 40
		}
		largest = max(largest, head+20+len(s.Options)+len(s.Payload))
	}
	if largest != linkMTU {
		l.t.Errorf("the client's largest packet has %d octets, want %d", largest, linkMTU)
	}
}

// plain wants no segment with one of our options in this direction.
func (l *lab) plain(fromServer bool) {
	l.t.Helper()
	for i, s := range l.segments(fromServer) {
		if s.Option(KindAnswer) != nil || s.Option(KindEcho) != nil {
			l.t.Fatalf("segment %d (of the server: %v) has the options % x", i, fromServer, s.Options)
		}
	}
}

// Who does not know the option, and who never sees it, loses nothing else.
func TestPeersWithout(t *testing.T) {
	for _, tt := range []struct {
		name              string
		serve, echo, tell bool
		strip             []byte
		clientSegments    string // what they show; empty: nothing
		want              Counts
	}{
		{"the client's node", true, false, true, nil, "", Counts{Answered: 1}},
		{"the server's node", false, true, false, nil, "", Counts{Untold: 1}},
		{"a listener that is not told to", true, true, false, nil, "", Counts{Untold: 1}},
		{"a middlebox takes it from the SYN-ACK", true, true, true, []byte{KindAnswer}, "", Counts{Answered: 1, Untold: 1}},
		{"a middlebox takes it from the client's segments", true, true, true, []byte{KindEcho}, number(7), Counts{Answered: 1, Learned: 1, Echoed: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, Options{ServerID: 7}, tt.serve, tt.echo)
			var stripped atomic.Int32
			l.onTheWay(func(s testnet.Segment) {
				for _, kind := range tt.strip {
					if s.Option(kind) != nil {
						stripped.Add(1)
						s.Strip(kind)
					}
				}
			})
			var marks []func(int) error
			if tt.tell {
				marks = append(marks, l.tell)
			}
			l.exchange(l.listen(l.node.Addr4, marks...), much)
			if (stripped.Load() > 0) != (len(tt.strip) > 0) {
				t.Errorf("%d options were stripped", stripped.Load())
			}
			if tt.clientSegments == "" {
				l.plain(false)
			} else {
				l.wantEcho(tt.clientSegments)
			}
			l.wantCounts(tt.want)
		})
	}
}

// What a server that is none of ours writes is no number, and harms nothing.
func TestStrangeAnswers(t *testing.T) {
	for name, change := range map[string]func(option []byte){
		"zero":         func(o []byte) { copy(o[2:], []byte{0, 0, 0, 0}) },
		"too short":    func(o []byte) { o[1], o[4], o[5] = 4, 1, 1 },
		"another kind": func(o []byte) { o[0] = KindEcho },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Options{ServerID: 7}, true, true)
			l.onTheWay(func(s testnet.Segment) {
				if s.Option(KindAnswer) != nil {
					s.Change(KindAnswer, change)
				}
			})
			l.exchange(l.listen(l.node.Addr4, l.tell), 1000)
			l.plain(false)
			l.wantCounts(Counts{Answered: 1, Untold: 1})
		})
	}
}

// Supervisors of several hosts may share a cgroup: each answers for its own.
func TestSeveralNodesInACgroup(t *testing.T) {
	l := newLab(t, Options{ServerID: 7}, false, true)
	var other *Programs
	if err := l.client.Do(func() (err error) { other, err = Open(Options{ServerID: 9}); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		other.Unpin()
		other.Close()
	})
	_, own := need.Cgroup2(t)
	for _, p := range []*Programs{other, l.programs} { // who comes first writes first
		if err := p.Serve(own); err != nil {
			t.Fatal(err)
		}
	}
	l.exchange(l.listen(l.node.Addr4, l.tell), much)
	l.wantEcho(number(7))
	l.wantCounts(Counts{Answered: 1, Learned: 1, Echoed: 1})
}

// The account of flows is a program on the same hook of the same cgroup, and asks
// for callbacks of its own: neither takes the other's.
func TestBesideTheAccountOfFlows(t *testing.T) {
	for _, first := range []string{"flows", "options"} {
		t.Run(first+" first", func(t *testing.T) {
			_, own := need.Cgroup2(t)
			var account *flows.Flows
			openAccount := func() {
				var err error
				if account, err = flows.Open(own, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { account.Close() })
			}
			if first == "flows" {
				openAccount()
			}
			l := newLab(t, Options{ServerID: 7}, true, true)
			if account == nil {
				openAccount()
			}
			if err := account.Account(3, 1); err != nil {
				t.Fatal(err)
			}
			l.exchange(l.listen(l.node.Addr4, l.tell, func(fd int) error { return account.Mark(fd, 3, 1) }), 1000)
			l.wantCounts(Counts{Answered: 1, Learned: 1, Echoed: 1})
			want := flows.Counts{flows.Established: 1, flows.Answered: 1, flows.Closed: 1}
			var got flows.Counts
			for deadline := time.Now().Add(time.Minute); got != want && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				var err error
				if got, err = account.Counts(3, 1); err != nil {
					t.Fatal(err)
				}
			}
			if got != want {
				t.Errorf("the account has %v, want %v", got, want)
			}
		})
	}
}

// A process that ends leaves what it pinned: listeners go on telling, and who
// comes after takes over.
func TestTakenOver(t *testing.T) {
	dir := scratch.Pins(t)
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil { // not empty: something is pinned still
			t.Error(err)
		}
	})
	o := Options{ServerID: 7, Dir: dir}
	l := newLab(t, o, true, true)
	listener := l.listen(l.node.Addr4, l.tell)
	l.exchange(listener, 1000)
	in, _, conn, wait := l.dial(listener)

	if err := l.programs.Close(); err != nil {
		t.Fatal(err)
	}
	l.exchange(listener, 1000)

	_, own := need.Cgroup2(t)
	err := l.node.Do(func() (err error) { l.programs, err = Open(o); return err })
	if err == nil {
		err = l.programs.Serve(own)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.exchange(listener, 1000)
	l.wantCounts(Counts{Answered: 4, Learned: 4, Echoed: 1})

	before := len(l.segments(false))
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := in.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, err := conn.Read(got); err != nil || !bytes.Equal(got[:n], []byte("still here")) {
		t.Fatalf("%q, %v", got[:n], err)
	}
	for _, s := range l.segments(false)[before:] {
		if string(s.Option(KindEcho)) != number(7) {
			t.Errorf("a segment of the connection that stayed has the options % x", s.Options)
		}
	}
	conn.Close()
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// No callback is left on where nothing is written: a server's connection runs the
// program a few times in its life, however much passes, and so does a client's
// that was told nothing.
func TestNoCallbacksLeftOn(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	l := newLab(t, Options{ServerID: 7}, true, true)
	for _, tells := range []bool{true, false} {
		var marks []func(int) error
		if tells {
			marks = append(marks, l.tell)
		}
		listener := l.listen(l.node.Addr4, marks...)
		serverBefore, clientBefore := l.runs()
		l.exchange(listener, much)
		server, client := l.runs()
		server, client = server-serverBefore, client-clientBefore
		listener.Close()
		const few = 20
		// The client's cgroup is below the server's, whose half runs for its segments too.
		if server > client+few {
			t.Errorf("tells %v: the server's half ran %d times for one connection, the client's %d", tells, server, client)
		}
		if !tells && client > few {
			t.Errorf("the client's half ran %d times for a connection without the option", client)
		}
		if tells && client < 100 {
			t.Errorf("the client's half ran %d times: the test does not see runs", client)
		}
		t.Logf("tells %v: the server's half ran %d times, the client's %d", tells, server, client)
	}
}

// runs is how often each half has run.
func (l *lab) runs() (server, client uint64) {
	l.t.Helper()
	s, err1 := l.programs.objs.Server.Stats()
	c, err2 := l.programs.objs.Client.Stats()
	if err := errors.Join(err1, err2); err != nil {
		l.t.Fatal(err)
	}
	return s.RunCount, c.RunCount
}
