package flows

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/testnet"
)

// With SYN cookies always, the kernel can make a second connection of one that
// is over, and the account has it, for it is one: the server accepts it.
//
// A cookie is good for the segment after the client's SYN, which the kernel knows
// from the numbers of a segment alone. To both numbers the end of a connection
// without octets adds one, which the check subtracts twice and does not see
// (net/ipv4/syncookies.c: check_tcp_syn_cookie takes the client's number from the
// cookie). So the client's last ACK is as good as its first, whenever it is sent
// again: here as the answer of its TIME_WAIT to a SYN with its addresses, elsewhere
// to a server's ACK that its FIN has overtaken.
func TestLastAckIsACookie(t *testing.T) {
	for cookies, again := range map[string]uint64{"0": 0, "1": 0, "2": 1} {
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
			client, conn := s.pair()
			port := uint16(client.LocalAddr().(*net.TCPAddr).Port)
			client.Close() // first, so that the client has the TIME_WAIT
			unix.Read(conn, make([]byte, 1))
			unix.Close(conn)
			want(t, f, 7, Counts{Established: 1, Closed: 1})
			if err := segment(host, s.addr, port, syn); err != nil {
				t.Fatal(err)
			}
			if again > 0 {
				conn := s.accept()
				t.Cleanup(func() { unix.Close(conn) })
			}
			s.pair() // whatever else was to come has come
			want(t, f, 7, Counts{Established: 2 + again, Closed: 1})
		})
	}
}
