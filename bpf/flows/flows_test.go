package flows

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/scratch"
	"github.com/baton-mesh/baton/tests/testnet"
)

func TestLifeOfAFlow(t *testing.T) {
	f := open(t, "")
	host := testnet.New(t, "node")[0]
	s := serve(t, f, host, 0, 7)
	other := serve(t, f, host, int(s.addr.Port())+1, 8)
	stranger := serve(t, f, host, int(s.addr.Port())+2, 0)

	client, conn := s.pair()
	other.pair()
	stranger.pair()
	want(t, f, 7, Counts{Established: 1})
	want(t, f, 8, Counts{Established: 1})

	client.Write([]byte("question"))
	unix.Read(conn, make([]byte, 100))
	want(t, f, 7, Counts{Established: 1}) // the client's octets are no answer
	unix.Write(conn, []byte("answer"))
	client.Read(make([]byte, 100))
	want(t, f, 7, Counts{Established: 1, Answered: 1})
	unix.Write(conn, []byte("more"))
	client.Read(make([]byte, 100))
	client.Close()
	unix.Close(conn)
	want(t, f, 7, Counts{Established: 1, Answered: 1, Closed: 1})
	want(t, f, 8, Counts{Established: 1})
}

// A client that asked and got nothing is told from one that never asked.
func TestUnanswered(t *testing.T) {
	f := open(t, "")
	s := serve(t, f, testnet.New(t, "node")[0], 0, 7)
	client, conn := s.pair()
	client.Close()
	unix.Close(conn)
	want(t, f, 7, Counts{Established: 1, Closed: 1})
	client, conn = s.pair()
	client.Write([]byte("question"))
	unix.Read(conn, make([]byte, 100))
	unix.Close(conn)
	client.Close()
	want(t, f, 7, Counts{Established: 2, Closed: 2, Unanswered: 1, Failed: 1})
}

func TestResets(t *testing.T) {
	abort := func(fd int) {
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
	}
	for _, tt := range []struct {
		name string
		do   func(s *server)
		want Counts
	}{
		{"the server aborts", func(s *server) {
			_, conn := s.pair()
			abort(conn)
		}, Counts{Established: 1, Closed: 1, ResetSent: 1, ResetUnanswered: 1, Unanswered: 1, Failed: 1}},
		{"the server aborts in the middle of its answer", func(s *server) {
			client, conn := s.pair()
			unix.Write(conn, []byte("ans"))
			client.Read(make([]byte, 3))
			abort(conn)
		}, Counts{Established: 1, Answered: 1, Closed: 1, ResetSent: 1, Failed: 1}},
		{"the server closes with octets unread", func(s *server) {
			client, conn := s.pair()
			client.Write([]byte("question"))
			if _, _, err := unix.Recvfrom(conn, make([]byte, 1), unix.MSG_PEEK); err != nil {
				s.t.Error(err)
			}
			unix.Close(conn)
		}, Counts{Established: 1, Closed: 1, ResetSent: 1, ResetUnanswered: 1, Unanswered: 1, Failed: 1}},
		{"the client aborts", func(s *server) {
			client, conn := s.pair()
			client.Write([]byte("question"))
			unix.Read(conn, make([]byte, 100))
			client.(*net.TCPConn).SetLinger(0)
			client.Close()
			s.t.Cleanup(func() { unix.Close(conn) })
		}, Counts{Established: 1, Closed: 1, ResetReceived: 1}},
		{"nobody had accepted it", func(s *server) {
			s.dial()
			s.dial()
			s.close()
		}, Counts{Established: 2, Closed: 2, ResetQueued: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := open(t, "")
			s := serve(t, f, testnet.New(t, "node")[0], 0, 7)
			tt.do(s)
			want(t, f, 7, tt.want)
		})
	}
}

// What the process had open when it ended is told from what it had closed,
// however it ended.
func TestOpenAtExit(t *testing.T) {
	for _, how := range []string{"exit", "kill"} {
		for _, unread := range []bool{false, true} {
			t.Run(fmt.Sprint(how, " unread ", unread), func(t *testing.T) {
				f := open(t, "")
				s := serve(t, f, testnet.New(t, "node")[0], 0, 7)
				client, conn := s.pair()
				unix.Close(conn)
				client.Close()
				want(t, f, 7, Counts{Established: 1, Closed: 1})

				dup, err := unix.Dup(s.fd)
				if err != nil {
					t.Fatal(err)
				}
				file := os.NewFile(uintptr(dup), "socket")
				defer file.Close()
				cmd := exec.Command("/proc/self/exe", asServer)
				cmd.ExtraFiles = []*os.File{file}
				in, err1 := cmd.StdinPipe()
				out, err2 := cmd.StdoutPipe()
				if err := errors.Join(err1, err2, cmd.Start()); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { in.Close(); cmd.Process.Kill() })
				client = s.dial()
				if unread {
					client.Write([]byte("question"))
				}
				if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "accepted\n" {
					t.Fatalf("the server said %q, %v", said, err)
				}
				if how == "kill" {
					cmd.Process.Kill()
				}
				in.Close()
				cmd.Wait()
				client.Close()
				c := Counts{Established: 2, Closed: 2, OpenAtExit: 1, Failed: 1}
				if unread {
					c[ResetSent], c[ResetUnanswered], c[Unanswered] = 1, 1, 1
				}
				want(t, f, 7, c)
			})
		}
	}
}

// Runs of the steering program are not flows; the account knows flows alone.
func TestScansAndStraysAreNoFlows(t *testing.T) {
	for _, cookies := range []string{"0", "1", "2"} {
		t.Run("tcp_syncookies="+cookies, func(t *testing.T) {
			f := open(t, "")
			host := testnet.New(t, "node")[0]
			err := host.Do(func() error {
				return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(cookies), 0)
			})
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t, f, host, 0, 7)
			const flows = 20
			for i := range uint16(flows) {
				for j, flags := range []byte{syn, ack, fin | ack, rst, 0} {
					if err := segment(host, s.addr, 20000+i*8+uint16(j), flags); err != nil {
						t.Fatal(err)
					}
				}
				client, conn := s.pair()
				client.Close()
				unix.Close(conn)
			}
			want(t, f, 7, Counts{Established: flows, Closed: flows})
		})
	}
}

// With pins, flows are counted on while nobody has the programs, and once when
// two have.
func TestOutlivesItsProcess(t *testing.T) {
	dir := scratch.Pins(t)
	first := open(t, dir)
	unpinned := open(t, "") // another's, with marks and accounts of its own
	s := serve(t, first, testnet.New(t, "node")[0], 0, 7)
	both := func() {
		_, conn := s.pair()
		unix.SetsockoptLinger(conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(conn)
	}
	both()
	want(t, first, 7, Counts{Established: 1, Closed: 1, ResetSent: 1, ResetUnanswered: 1, Unanswered: 1, Failed: 1})
	if err := errors.Join(first.Close(), unpinned.Close()); err != nil {
		t.Fatal(err)
	}
	both()
	second := open(t, dir)
	want(t, second, 7, Counts{Established: 2, Closed: 2, ResetSent: 2, ResetUnanswered: 2, Unanswered: 2, Failed: 2})
	if err := second.Account(7, listenerNumber); err != nil { // as who adopts it does
		t.Fatal(err)
	}
	both()
	want(t, second, 7, Counts{Established: 3, Closed: 3, ResetSent: 3, ResetUnanswered: 3, Unanswered: 3, Failed: 3})
	if err := errors.Join(second.Account(8, 1), second.Account(9, 1), second.Prune(func(id uint64) bool { return id != 8 })); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Counts(8, 1); !errors.Is(err, ErrNoAccount) {
		t.Errorf("an account that was pruned: %v", err)
	}
	if _, err := second.Counts(9, 1); err != nil {
		t.Errorf("an account that was kept: %v", err)
	}
	want(t, second, 7, Counts{Established: 3, Closed: 3, ResetSent: 3, ResetUnanswered: 3, Unanswered: 3, Failed: 3})
	if err := second.Forget(7, listenerNumber); err != nil {
		t.Fatal(err)
	}
	both()
	if _, err := second.Counts(7, listenerNumber); !errors.Is(err, ErrNoAccount) {
		t.Errorf("an account that was closed: %v", err)
	}
	if err := second.Unpin(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkConnect is a connection from its handshake to its end, without and
// with the account.
func BenchmarkConnect(b *testing.B) {
	connect := func(b *testing.B, f *Flows) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(b.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		if f != nil {
			raw, _ := l.(*net.TCPListener).SyscallConn()
			raw.Control(func(fd uintptr) { err = errors.Join(f.Account(7, 1), f.Mark(int(fd), 7, 1)) })
			if err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			client, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports would run out
			conn.Close()
			client.Close()
		}
		if f != nil {
			if counts, err := f.Counts(7, 1); err != nil || counts[Established] == 0 {
				b.Errorf("nothing was counted: %v, %v", counts, err)
			}
		}
	}
	b.Run("without", func(b *testing.B) { connect(b, nil) })
	b.Run("with", func(b *testing.B) { connect(b, open(b, "")) })
}
