package packetpath

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/node"
)

// What stands behind a node serves so many at once, and each takes so long: 100
// requests a second.
const (
	serviceSlots = 4
	serviceTime  = 40 * time.Millisecond
)

// TestCapacity draws how many requests three nodes at full load serve, while they
// are replaced one by one and all at once: by being taken out of the balancer,
// stopped and started anew, and by releases. BATON_TEST_CAPACITY is the file for
// the picture.
func TestCapacity(t *testing.T) {
	file := os.Getenv("BATON_TEST_CAPACITY")
	if file == "" {
		t.Skip("a measurement: make capacity")
	}
	l := newLab(t, true)
	three := l.nodes[:3]
	for _, b := range l.balancers {
		b.write(three...)
		b.must(t, "reload")
	}
	for _, n := range three {
		n.limit(serviceSlots)
	}
	oneByOne := func(replace func(*labNode)) func() {
		return func() {
			for _, n := range three {
				replace(n)
			}
		}
	}
	allAtOnce := func(replace func(*labNode)) func() {
		return func() {
			var all sync.WaitGroup
			for _, n := range three {
				all.Go(func() { replace(n) })
			}
			all.Wait()
		}
	}
	restart := func(n *labNode) {
		for _, b := range l.balancers {
			b.must(t, "drain", n.name)
		}
		time.Sleep(2 * time.Second) // for what it has
		pid := n.PID()
		syscall.Kill(pid, syscall.SIGTERM)
		node.Eventually(t, n.name+" has ended", func() bool { return syscall.Kill(pid, 0) != nil })
		if err := n.Restart(t.Context()); err != nil {
			t.Error(err)
		}
		for _, b := range l.balancers {
			b.must(t, "drain", "--undo", n.name)
		}
	}
	release := func(n *labNode) {
		if r, err := n.Release(t.Context(), ""); err != nil || r.ExitCode != 0 {
			t.Errorf("%s: %+v, %v", n.name, r, err)
		}
	}
	var lines []capacityLine
	for _, way := range []struct {
		name string
		do   func()
	}{
		{"drain and restart, one by one", oneByOne(restart)},
		{"drain and restart, all at once", allAtOnce(restart)},
		{"releases, one by one", oneByOne(release)},
		{"releases, all at once", allAtOnce(release)},
	} {
		line := l.underLoad(way.name, way.do)
		t.Logf("%s: took %v, least %d requests in 500 ms of %d before, %d failed of %d", way.name, line.took.Round(time.Millisecond), line.least(), line.before(), line.failed, line.all())
		lines = append(lines, line)
	}
	if err := os.WriteFile(file, drawCapacity(lines), 0o644); err != nil {
		t.Fatal(err)
	}
}

// capacityLine is the requests served in each half second.
type capacityLine struct {
	name   string
	served []int
	failed int
	begin  int // the half second in which the replacing began
	took   time.Duration
}

const (
	bin       = 500 * time.Millisecond
	settleFor = 3 * time.Second
)

func (c capacityLine) before() int {
	sum := 0
	for _, n := range c.served[1:c.begin] {
		sum += n
	}
	return sum / (c.begin - 1)
}

func (c capacityLine) least() int {
	least := c.served[c.begin]
	for _, n := range c.served[c.begin : len(c.served)-1] {
		least = min(least, n)
	}
	return least
}

func (c capacityLine) all() int {
	sum := c.failed
	for _, n := range c.served {
		sum += n
	}
	return sum
}

// underLoad keeps all nodes busy while do runs, and some time before and after.
func (l *lab) underLoad(name string, do func()) capacityLine {
	line := capacityLine{name: name, begin: int(settleFor / bin)}
	var mu sync.Mutex
	var clients sync.WaitGroup
	stop, began := make(chan struct{}), time.Now()
	for range 6 * serviceSlots { // half of them wait
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := l.ask()
				at := int(time.Since(began) / bin)
				mu.Lock()
				for len(line.served) <= at {
					line.served = append(line.served, 0)
				}
				if err == nil {
					line.served[at]++
				} else {
					line.failed++
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	time.Sleep(settleFor)
	start := time.Now()
	do()
	line.took = time.Since(start)
	time.Sleep(settleFor)
	close(stop)
	clients.Wait()
	return line
}

// ask makes a connection to the VIP, and has something back on it.
func (l *lab) ask() error {
	c, err := l.clients.Dial("tcp", vipTCP)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(node.Enough))
	_, err = c.Read(make([]byte, 64))
	return err
}

// must runs a sub-command of `baton balance`.
func (b *balancerHost) must(t *testing.T, args ...string) {
	t.Helper()
	if out, err := b.baton(args...); err != nil {
		t.Errorf("%s: %v: %v: %s", b.host.Name, args, err, out)
	}
}

// limit makes what stands behind the node serve only so many streams at once.
func (n *labNode) limit(slots int) {
	busy := make(chan struct{}, slots)
	n.busy.Store(&busy)
}

// drawCapacity draws the requests served over time, relative to those before.
func drawCapacity(lines []capacityLine) []byte {
	const width, height, left, bottom = 760, 320, 50, 40
	longest := 0
	for _, c := range lines {
		longest = max(longest, len(c.served))
	}
	x := func(at int) float64 { return left + float64(at)/float64(longest)*(width-left-250) }
	y := func(share float64) float64 { return (height - bottom) * (1 - share/1.3) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`, width, height)
	for _, share := range []float64{0, 1. / 3, 2. / 3, 1} {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%.1f" stroke="#ddd"/><text x="8" y="%.1f">%.0f %%</text>`, left, y(share), x(longest), y(share)+4, share*100)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d">requests served, over %v</text>`, left, height-12, time.Duration(longest)*bin)
	for i, c := range lines {
		color := []string{"#c0392b", "#d68910", "#1b6ca8", "#27ae60"}[i%4]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="`, color)
		for at, n := range c.served[:len(c.served)-1] {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(at), y(min(float64(n)/float64(max(c.before(), 1)), 1.3)))
		}
		fmt.Fprintf(&b, `"/><text x="%.0f" y="%d" fill="%s">%s: %d of %d failed</text>`, x(longest)+8, 30+i*18, color, c.name, c.failed, c.all())
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
