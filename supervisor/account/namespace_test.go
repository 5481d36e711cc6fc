package account

import "testing"

func TestNamespaceEvents(t *testing.T) {
	const names, values = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPReqQFullDrop\n", "TcpExt: 1 2 3 4\n"
	got, err := parseNamespace("IpExt: A\nIpExt: 9\n" + names + values)
	if err != nil || got["listen_overflows"] != 2 || got["half_open_overflows"] != 4 || Overflows(got) != 6 {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", names, names + "TcpExt: 1 2\n", names + "TcpExt: 1 x 3 4\n"} {
		if got, err := parseNamespace(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
