package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Report is everything that was measured.
type Report struct {
	Date    time.Time `json:"date"`
	Seconds float64   `json:"seconds"`
	Version string    `json:"version"`
	Linux   string    `json:"linux"`
	CPUs    int       `json:"cpus"`
	Load    string    `json:"loadavg_at_start"`
	// Others is what others used of the machine's CPUs while this run paused, in percent.
	Others Figure `json:"others_cpu_percent"`

	Kernel       Kernel        `json:"kernel"`
	Idle         Releases      `json:"releases_idle"`
	Loaded       Releases      `json:"releases_under_load"` // of wrk with keep-alive
	Peers        []Peer        `json:"peers"`
	Secure       Secure        `json:"secure"`
	Adoptions    []Adoption    `json:"adoptions"`
	Expectations []Expectation `json:"expectations"`
}

// Releases is what Baton's releases took, in ms.
type Releases struct {
	Stages map[string]*Figure `json:"stages"`
	// ToShift is from the beginning of start to the end of shift.
	ToShift Figure `json:"start_to_shift"`
	// Command is the whole of `baton release --no-verify`.
	Command Figure `json:"command"`
}

// Expectation compares a figure with what it should be.
type Expectation struct {
	What   string  `json:"what"`
	Figure float64 `json:"figure"`
	AtMost float64 `json:"at_most"`
	// Verdict is met, MISSED, or open: the figure is an estimate, and its interval
	// has the bound in it.
	Verdict  string      `json:"verdict"`
	Interval *[2]float64 `json:"interval,omitempty"` // nil: the figure is none
}

var stages = []string{"validate", "start", "probe", "shift"}

func newReport(t tools) (*Report, error) {
	r := &Report{Date: time.Now(), CPUs: runtime.NumCPU()}
	var err error
	if r.Version, err = versionOf([]string{t.baton, "version"}); err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	r.Linux = unix.ByteSliceToString(uts.Release[:])
	load, err := os.ReadFile("/proc/loadavg")
	r.Load = strings.TrimSpace(string(load))
	return r, err
}

// lookAround notes what others use of the machine. Called while all peers rest.
func (r *Report) lookAround() error {
	busy, err := othersBusy(200 * time.Millisecond)
	r.Others.add(busy)
	return err
}

// takeReleases takes the times of the releases there were since the last call,
// if the peer has any, and adds them to, if it is not nil. The report has those
// of Baton with all its stages.
func (r *Report) takeReleases(from *running, to *Releases) {
	b, ok := from.server.(*batonServer)
	if !ok {
		return
	}
	taken := b.taken()
	if to == nil || from.name != "baton" {
		return
	}
	if to.Stages == nil {
		to.Stages = make(map[string]*Figure)
	}
	for _, rel := range taken {
		for _, name := range stages {
			if to.Stages[name] == nil {
				to.Stages[name] = new(Figure)
			}
			to.Stages[name].add(rel.stages[name])
		}
		to.ToShift.add(rel.stages["start"] + rel.stages["probe"] + rel.stages["shift"])
		to.Command.add(rel.command)
	}
}

// finish compares with the expectations.
func (r *Report) finish() {
	r.Seconds = time.Since(r.Date).Seconds()
	expect := func(what string, figure, atMost float64) {
		e := Expectation{What: what, Figure: figure, AtMost: atMost, Verdict: "met"}
		if figure > atMost {
			e.Verdict = "MISSED"
		}
		r.Expectations = append(r.Expectations, e)
	}
	dip := func(what string, share Figure) {
		var missing Figure
		for _, v := range share.values {
			missing.add(100 - v)
		}
		r.Expectations = append(r.Expectations, estimated("dip of throughput, "+what+", %", missing, 5))
	}
	for _, p := range r.Peers {
		if p.Name != "baton" {
			continue
		}
		expect("start to shift without load, ms (median)", r.Idle.ToShift.Median(), 250)
		expect("start to shift under load, ms (median)", r.Loaded.ToShift.Median(), 250)
		dip("keep-alive", p.KeepAlive.Share)
		dip("new connections", p.Fresh.Share)
		r.Expectations = append(r.Expectations, estimated("CPU time of a release at a light load, % of a second of all CPUs", p.Light.share(), 5))
		expect(fmt.Sprintf("failures in %d releases, strict clients", p.Strict.Replacements), float64(p.Strict.Total()), 0)
		expect("errors of wrk during releases", float64(p.KeepAlive.Errors+p.Fresh.Errors), 0)
	}
	dip("HTTP/1.1 over TLS", r.Secure.HTTP1.Share)
	dip("HTTP/2", r.Secure.HTTP2.Share)
	expect("errors over TLS during releases", float64(r.Secure.HTTP1.Errors+r.Secure.HTTP2.Errors), 0)
	for _, a := range r.Adoptions {
		expect(a.Name+": in charge after its supervisor's death, ms (most)", a.InCharge.most(), 1000)
		dip(a.Name+" at its supervisor's death", a.KeepAlive.Share)
		expect(a.Name+": errors of wrk at its supervisor's death", float64(a.KeepAlive.Errors), 0)
	}
}

// estimated compares an estimate with a bound.
func estimated(what string, f Figure, atMost float64) Expectation {
	middle, low, high := f.estimate()
	e := Expectation{What: what, Figure: middle, AtMost: atMost, Verdict: "open"}
	switch {
	case len(f.values) < fewest:
		return e
	case high <= atMost:
		e.Verdict = "met"
	case low > atMost:
		e.Verdict = "MISSED"
	}
	e.Interval = &[2]float64{low, high}
	return e
}

// disturbed says whether others used so much that the figures may be off.
func (r *Report) disturbed() bool { return r.Others.Median() > 5 }

func (r *Report) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s, %s, Linux %s, %d CPUs, %.0f s\n", r.Version, r.Date.UTC().Format("2006-01-02 15:04 UTC"), r.Linux, r.CPUs, r.Seconds)
	fmt.Fprintf(out, "others used %s %% of the CPUs while this run paused (load %s)\n", r.Others.text(0), r.Load)
	if r.disturbed() {
		fmt.Fprintf(out, "DISTURBED: others were busy; the figures are worse than the machine allows\n")
	}
	fmt.Fprintf(out, "Each figure is the median [least–most], or an estimate [the interval that has the true one in 95 of 100 cases].\n\n")

	table(out, "shift in the kernel\t", func(t io.Writer) {
		fmt.Fprintf(t, "store, ns\t%s\t\n", r.Kernel.Store.text(1))
		fmt.Fprintf(t, "fence, ms\t%s\t\n", r.Kernel.Fence.text(2))
	})
	table(out, "releases of Baton, ms\twithout load\tunder load\t", func(t io.Writer) {
		for _, name := range stages {
			fmt.Fprintf(t, "%s\t%s\t%s\t\n", name, r.Idle.stage(name), r.Loaded.stage(name))
		}
		fmt.Fprintf(t, "start to shift\t%s\t%s\t\n", r.Idle.ToShift.text(1), r.Loaded.ToShift.text(1))
		fmt.Fprintf(t, "baton release --no-verify\t%s\t%s\t\n", r.Idle.Command.text(1), r.Loaded.Command.text(1))
	})
	r.printStrict(out)
	for _, load := range []struct {
		name string
		of   func(Peer) *Throughput
	}{
		{"keep-alive", func(p Peer) *Throughput { return p.KeepAlive }},
		{"a connection for each request", func(p Peer) *Throughput { return p.Fresh }},
	} {
		head := load.name + "\trequests/s\tshare, %\tafter, %\tcontrol, %\tCPU/request, µs\treplacing\terrors\t"
		table(out, head, func(t io.Writer) {
			for _, p := range r.Peers {
				if tp := load.of(p); tp != nil {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", p.Name, tp.Steady.text(0), tp.Share.estimateText(1), tp.After.estimateText(1), tp.Control.estimateText(1),
						tp.CPU.text(0), tp.CPUDuring.text(0), tp.Errors)
				}
			}
		})
	}
	r.Secure.print(out)
	printAdoptions(out, r.Adoptions)
	r.printCost(out)
	printCosts(out, r.Peers)
	for _, e := range r.Expectations {
		doubt, interval := "", ""
		if i := e.Interval; i != nil {
			interval = fmt.Sprintf(" [%.1f, %.1f]", i[0], i[1])
		}
		if r.disturbed() {
			doubt = " (disturbed)"
		}
		fmt.Fprintf(out, "%-7s %s: %.1f%s, expected at most %.0f%s\n", e.Verdict, e.What, e.Figure, interval, e.AtMost, doubt)
	}
}

func (r *Report) printStrict(out io.Writer) {
	head := "strict clients: failures\treplacements"
	for _, k := range strictKinds {
		head += "\t" + string(k)
	}
	table(out, head+"\tcareful\t(closed)\tall\tok\t", func(t io.Writer) {
		for _, p := range r.Peers {
			s := p.Strict
			fmt.Fprintf(t, "%s\t%d\t", p.Name, s.Replacements)
			for _, k := range strictKinds {
				fmt.Fprintf(t, "%d\t", s.Failed[k])
			}
			fmt.Fprintf(t, "%d\t(%d)\t%d\t%d\t\n", s.Careful.Failed, s.Careful.Closed, s.Total(), s.OK+s.Careful.OK)
		}
	})
	for _, p := range r.Peers {
		if p.Strict.Before > 0 {
			fmt.Fprintf(out, "%s: %d operations failed before the first replacement\n\n", p.Name, p.Strict.Before)
		}
	}
}

func (r *Report) printCost(out io.Writer) {
	head := "cost of replacing\ttime, ms\tCPU, ms\tRSS alone, MiB\toverlap\tPSS alone, MiB\toverlap\tstrict clients\t(processes)\tCPU alone, %\toverlap\t"
	table(out, head, func(t io.Writer) {
		for _, p := range r.Peers {
			overlap := func(digits int, of func(Memory) float64) string {
				if p.Overlap == nil {
					return "–"
				}
				return fmt.Sprintf("%.*f", digits, of(*p.Overlap))
			}
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%.1f\t%s\t%.1f\t%s\t%.1f\t(%d)\t%.0f\t%s\t\n", p.Name, p.Replace.text(0), p.ReplaceCPU,
				p.Alone.RSS, overlap(1, func(m Memory) float64 { return m.RSS }),
				p.Alone.PSS, overlap(1, func(m Memory) float64 { return m.PSS }),
				p.Strict.Peak.PSS, p.Strict.Peak.Processes,
				*p.Alone.CPU, overlap(0, func(m Memory) float64 { return *m.CPU }))
		}
	})
}

func (r Releases) stage(name string) string {
	if f := r.Stages[name]; f != nil {
		return f.text(1)
	}
	return "–"
}

// table prints aligned columns and an empty line.
func table(out io.Writer, head string, rows func(io.Writer)) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, head)
	rows(t)
	t.Flush()
	fmt.Fprintln(out)
}
