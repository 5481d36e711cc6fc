package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/tests/scratch"
)

// TestStoreCost prints what the copy with systemd costs: by turns with a keeper that has none,
// and while systemd reads its units again. make systemd sets BATON_TEST_STORE.
func TestStoreCost(t *testing.T) {
	if os.Getenv("BATON_TEST_STORE") == "" {
		t.Skip("figures; make systemd prints them")
	}
	m := boot(t, "baton-keeper.service")
	m.does("systemctl", "start", "baton-keeper")
	stored, err := keeper.Connect(m.path("/run/baton/keeper.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()
	alone, err := keeper.Start(filepath.Join(scratch.Dir(t), "k"))
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	defer alone.Quit()
	one := memfds(t, "one", 1)
	round := func(c *keeper.Client, puts, drops []time.Duration) ([]time.Duration, []time.Duration) {
		begin := time.Now()
		if err := c.Put(one); err != nil {
			t.Fatal(err)
		}
		put := time.Since(begin)
		begin = time.Now()
		if err := c.Drop([]string{"one/0"}); err != nil {
			t.Fatal(err)
		}
		return append(puts, put), append(drops, time.Since(begin))
	}
	measure := func(what string) {
		var put, drop, putAlone, dropAlone []time.Duration
		for range 200 {
			put, drop = round(stored, put, drop)
			putAlone, dropAlone = round(alone, putAlone, dropAlone)
		}
		t.Logf("%s: put %s, drop %s; without a store put %s, drop %s", what, spread(put), spread(drop), spread(putAlone), spread(dropAlone))
	}
	measure("one descriptor")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				m.run("systemctl", "daemon-reload")
			}
		}
	}()
	measure("beside one daemon-reload after the other")
	close(stop)
	<-stopped

	const many = 1000
	all := memfds(t, "many", many)
	for _, k := range []struct {
		name string
		*keeper.Client
	}{{"stored", stored}, {"without a store", alone}} {
		begin := time.Now()
		if err := k.Put(all); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d descriptors %s: put in %v", many, k.name, time.Since(begin).Round(time.Millisecond))
	}
	m.eventually("systemd has them", func() bool { // a put does not wait for that
		has, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.pid))
		return err == nil && len(has) > many
	})
	begin := time.Now()
	m.does("systemctl", "kill", "--signal=KILL", "baton-keeper")
	m.eventually("the next keeper has them", func() bool {
		c, err := keeper.Connect(m.path("/run/baton/keeper.sock"))
		if err != nil {
			return false
		}
		defer c.Close()
		has, err := c.All()
		for _, fd := range has {
			unix.Close(fd)
		}
		return err == nil && len(has) == many
	})
	t.Logf("%d descriptors: the next keeper has them %v after the death of the one before", many, time.Since(begin).Round(time.Millisecond))
}

func memfds(t *testing.T, name string, n int) map[string]int {
	t.Helper()
	all := map[string]int{}
	for i := range n {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		all[fmt.Sprintf("%s/%d", name, i)] = fd
	}
	return all
}

// spread is the median and the most.
func spread(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("%v (most %v)", d[len(d)/2].Round(time.Microsecond), d[len(d)-1].Round(time.Microsecond))
}
