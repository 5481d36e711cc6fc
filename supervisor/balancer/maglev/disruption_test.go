package maglev

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// A flow as the next test sees it: the slot it hashes to, and the backend that
// it began at.
type flow struct {
	slot  int
	began uint32
}

// atTable is where packets without an id go, atID where those with one go: to
// the backend that the id names, as long as it is there.
func (f flow) atTable(table []uint32, _ map[uint32]bool) uint32 { return table[f.slot] }

func (f flow) atID(table []uint32, gone map[uint32]bool) uint32 {
	if gone[f.began] {
		return table[f.slot]
	}
	return f.began
}

// disruption fails some of 1,000 backends, several times over, and returns the
// mean share of all flows that leave a backend which is still there.
func disruption(size, failures, times int, choose func(flow, []uint32, map[uint32]bool) uint32) float64 {
	rng := rand.New(rand.NewPCG(uint64(size), uint64(failures)))
	backends := equal(1000)
	before := fill(size, backends)
	after := make([]uint32, size)
	left := 0
	for range times {
		rng.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
		gone := map[uint32]bool{}
		for _, b := range backends[:failures] {
			gone[b.Value] = true
		}
		Fill(after, backends[failures:])
		for slot, began := range before {
			if !gone[began] && choose(flow{slot, began}, after, gone) != began {
				left++
			}
		}
	}
	return float64(left) / float64(size*times)
}

// The paper's figure of what moves when backends fail together. The larger table
// moves fewer; ids leave nothing of it. With BATON_TEST_FIGURE, the name of a
// file, it draws the figure.
func TestDisruption(t *testing.T) {
	file := os.Getenv("BATON_TEST_FIGURE")
	failures, times := []int{10}, 1
	if file != "" {
		failures, times = []int{1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50}, 20
	}
	lines := []line{
		{"by table of 65,537", "#c0392b", Small, flow.atTable, nil},
		{"by table of 655,373", "#1b6ca8", Large, flow.atTable, nil},
		{"by id, either table", "#27ae60", Small, flow.atID, nil},
	}
	for i := range lines {
		l := &lines[i]
		for _, k := range failures {
			l.shares = append(l.shares, disruption(l.size, k, times, l.choose))
		}
		t.Logf("%s, failures %v of 1,000: %.4f %% of the flows", l.name, failures, scaled(l.shares))
	}
	for i := range failures {
		small, large, id := lines[0].shares[i], lines[1].shares[i], lines[2].shares[i]
		if small > 0.05 || large > small || id != 0 {
			t.Errorf("%d failures move %v of the flows in the small table, %v in the large, %v with ids", failures[i], small, large, id)
		}
	}
	if file != "" {
		if err := os.WriteFile(file, draw(failures, lines), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type line struct {
	name, color string
	size        int
	choose      func(flow, []uint32, map[uint32]bool) uint32
	shares      []float64 // of all flows, for each number of failures
}

func scaled(shares []float64) []float64 {
	percent := slices.Clone(shares)
	for i := range percent {
		percent[i] *= 100
	}
	return percent
}

// draw is the figure as SVG: failed backends to the right, moved flows up.
func draw(failures []int, lines []line) []byte {
	const width, height, left, right, bottom, above = 720, 380, 60, 190, 50, 20
	most := slices.Max(lines[0].shares) * 1.05
	x := func(k int) float64 { return left + float64(k)/float64(failures[len(failures)-1])*(width-left-right) }
	y := func(share float64) float64 { return above + (height-bottom-above)*(1-share/most) }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`+"\n", width, height)
	for percent := 0; float64(percent) < most*100; percent++ {
		at := y(float64(percent) / 100)
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%d %%</text>`+"\n", left, at, width-right, left-6, at+4, percent)
	}
	for k := 0; k <= failures[len(failures)-1]; k += 10 {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(k), height-bottom+18, k)
	}
	fmt.Fprintf(&b, `<text x="%.0f" y="%d" text-anchor="middle">backends of 1,000 that fail together</text>`+"\n", x(failures[len(failures)-1]/2), height-12)
	fmt.Fprintf(&b, `<text x="8" y="12">flows that leave a backend which is still there</text>`+"\n")
	for _, l := range lines {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, l.color)
		for i, k := range failures {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(k), y(l.shares[i]))
		}
		last := l.shares[len(l.shares)-1]
		fmt.Fprintf(&b, `"/><text x="%d" y="%.1f" fill="%s">%s: %.2f %%</text>`+"\n", width-right+8, y(last)+4, l.color, l.name, last*100)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
