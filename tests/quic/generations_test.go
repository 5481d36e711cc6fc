package quic

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"
)

// upload is a request whose body goes on until it is ended, on a connection of
// its own that is known to belong to a generation. The client sits behind a relay
// and can change its address.
type upload struct {
	*client
	relay      *relay
	generation string
	body       *io.PipeWriter
	answer     chan error
}

// upload begins one. The generation is the one that the connection is answered by.
func (l *load) upload() (*upload, error) {
	u := &upload{relay: newRelay(l.t, l.url[len("https://"):]), answer: make(chan error, 1)}
	u.client = l.client(l.secure)
	u.url = "https://" + u.relay.address()
	if _, err := u.do(http.MethodGet, "/small", nil); err != nil {
		u.close()
		return nil, err
	}
	u.generation = u.owners[u.last.Load()]
	r, w := io.Pipe()
	u.body = w
	sum := sha256.New()
	go func() {
		// Longer than a request has: it lasts as long as the test wants.
		got, err := u.doFor(time.Hour, http.MethodPost, "/upload", io.TeeReader(r, sum))
		r.CloseWithError(io.ErrClosedPipe)
		var answer struct{ SHA256 string }
		if err == nil && (json.Unmarshal(got, &answer) != nil || answer.SHA256 != hex.EncodeToString(sum.Sum(nil))) {
			err = fmt.Errorf("it arrived as %s", got)
		}
		u.answer <- err
	}()
	return u, u.send()
}

// send sends some more of the body.
func (u *upload) send() error {
	_, err := u.body.Write(make([]byte, 4<<10))
	return err
}

// finish ends the body and says what was wrong with the whole.
func (u *upload) finish() error {
	u.body.Close()
	err := <-u.answer
	if err == nil && len(u.owners) != 1 {
		err = fmt.Errorf("it took %d connections", len(u.owners))
	}
	return err
}

func (u *upload) close() {
	u.end()
	u.relay.close()
}

// TestFourGenerations has connections in use on each of four generations that live
// at once, all of whose clients change their address again and again.
func TestFourGenerations(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.kept()
	l.datagrams()
	var all []*upload
	byGeneration := map[string]int{}
	for i := range 4 {
		if i > 0 {
			s.release(t, "release")
		}
		for range 2 {
			u, err := l.upload()
			if err != nil {
				t.Fatal(err)
			}
			defer u.close()
			all = append(all, u)
			byGeneration[u.generation]++
		}
	}
	if len(byGeneration) != 4 {
		t.Fatalf("connections by generation: %v", byGeneration)
	}
	for range 10 {
		for _, u := range all {
			u.relay.rebind()
			if err := u.send(); err != nil {
				t.Errorf("generation %s: %v", u.generation, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Generations) != 4 {
		t.Errorf("%d generations are alive: %+v", len(status.Generations), status.Generations)
	}
	for _, u := range all {
		if err := u.finish(); err != nil {
			t.Errorf("generation %s: %v", u.generation, err)
		}
	}
	l.wantNoneFailed()
}

// wantNoneFailed ends a load.
func (l *load) wantNoneFailed() {
	l.t.Helper()
	done, failed := l.finish()
	l.t.Logf("%v operations, %d failed", done, len(failed))
	for _, f := range failed {
		l.t.Error(f)
	}
}

// TestImmortalConnections keeps a connection of QUIC and one of TCP on the first
// generation while later ones use up all slots, and begin again: its slot is
// passed over. BATON_ROUND is how many releases; below 256 nothing comes round.
func TestImmortalConnections(t *testing.T) {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("BATON_ROUND"), "0"))
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Skip("takes minutes: make quic. TestSlotsComeRound in supervisor is the short one")
	}
	s := startSite(t, siteSettings{drain: 2 * time.Hour})
	l := s.load(t)
	u, err := l.upload()
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	c, err := net.Dial("tcp", s.HTTP.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func(text string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(patience))
		got := make([]byte, len(text))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatalf("the connection of TCP: %v", err)
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
			t.Fatalf("the connection of TCP: %q for %q, %v", got, text, err)
		}
	}
	l.fresh()
	l.kept()
	l.datagrams()
	first := slotOf(t, s, u.generation)
	slots := map[int]int{}
	for i := range n {
		s.release(t, fmt.Sprintf("release %d of %d", i+1, n))
		status, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slot := slotOf(t, s, fmt.Sprint(status.Current))
		if slots[slot]++; slot == first {
			t.Fatalf("generation %d has the slot %d of generation %s, which is in use", status.Current, slot, u.generation)
		}
		u.relay.rebind()
		if err := u.send(); err != nil {
			t.Fatalf("after %d releases: %v", i, err)
		}
		echo(fmt.Sprintf("release %d\n", i))
	}
	again := 0
	for _, times := range slots {
		again += times - 1
	}
	t.Logf("%d releases in %d slots, %d of them again", n, len(slots), again)
	if err := u.finish(); err != nil {
		t.Errorf("generation %s: %v", u.generation, err)
	}
	c.Close()
	l.wantNoneFailed()
}

func slotOf(t *testing.T, s *site, generation string) int {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range status.Generations {
		if fmt.Sprint(g.ID) == generation {
			return g.Slot
		}
	}
	t.Fatalf("there is no generation %s: %+v", generation, status.Generations)
	return 0
}
