// Package doctor finds out what this kernel, these privileges and these ports
// allow, and says what to do about the rest.
//
// It asks by trying wherever it can, because a version number proves little: a
// container may forbid what the kernel has. Nothing it does is seen by a program
// that runs: it loads and forgets, binds and never listens.
package doctor

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/state"
)

// Level says what a finding means for Baton.
type Level string

// The levels, from good to bad.
const (
	OK   Level = "ok"
	Warn Level = "warn" // Baton runs, with the limit that Advice names
	Fail Level = "fail" // Baton does not run, or not safely

	// noBPF means that new flows are not steered by BPF here. Whether that is a
	// Fail or a Warn the configuration says; Run puts one of them in its place.
	noBPF Level = "no bpf"
)

// Finding is the result of one examination.
type Finding struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Found string `json:"found"`
	// Advice is what to do; empty where all is well.
	Advice string `json:"advice,omitempty"`
}

// Report is the result of all examinations, in the order of the table below.
type Report struct {
	Healthy  bool      `json:"healthy"` // no finding is a Fail
	Findings []Finding `json:"findings"`
}

// Options say what is examined.
type Options struct {
	// Config adds the user, the binary and the listeners of a configuration.
	Config *config.Config
	// Steering loads and forgets a program that steers connections. Nil leaves it out.
	Steering func() error
	// Iterator loads and forgets a program that reads accept queues. Nil leaves it out.
	Iterator func() error
	// Balancer loads and forgets the balancer's program; an error that is ErrNotTried
	// says why it did not. Nil leaves it out, as does a configuration without balancer.
	Balancer func() error

	readFile func(path string) ([]byte, error) // os.ReadFile, but in tests
	long     int                               // longChain, but in tests
	running  func() []state.Running            // state.AllRunning, but in tests
}

// examinations is everything that is looked at, in the order in which one
// failure explains the next.
var examinations = []struct {
	name string
	run  func(Options) []Finding
}{
	{"kernel", examineKernel},
	{"btf", examineBTF},
	{"capabilities", examineCapabilities},
	{"steering", examineSteering},
	{"iterator", examineIterator},
	{"fence", examineFence},
	{"pidfd", examinePidfd},
	{"cgroup", examineCgroup},
	{"bpffs", examineBPFFS},
	{"sysctl", examineSysctls},
	{"conntrack", examineConntrack},
	{"files", examineFiles},
	{"memory", examineMemory},
	{"proxy", examineProxy},
	{"number", examineNumbers},
	{"listener", examineListeners},
	{"datagrams", examineDatagrams},
	{"port", examineChains},
	{"balancer", examineBalancer},
}

// Run makes every examination.
func Run(o Options) Report {
	if o.readFile == nil {
		o.readFile = os.ReadFile
	}
	var findings []Finding
	steered := true
	for _, e := range examinations {
		for _, f := range e.run(o) {
			if f.Name == "" {
				f.Name = e.name
			} else {
				f.Name = e.name + " " + f.Name
			}
			steered = steered && f.Level != noBPF
			findings = append(findings, f)
		}
	}
	r := Report{Healthy: true}
	lack := Warn
	if o.steering() == config.SteeringBPF {
		lack = Fail
	}
	for _, f := range append([]Finding{mode(o.steering(), steered)}, findings...) {
		if f.Level == noBPF {
			f.Level = lack
		}
		r.Healthy = r.Healthy && f.Level != Fail
		r.Findings = append(r.Findings, f)
	}
	return r
}

// steering is what the configuration asks for.
func (o Options) steering() config.Steering {
	if o.Config == nil || o.Config.Steering == "" {
		return config.SteeringAuto
	}
	return o.Config.Steering
}

// mode says which steering runs here.
func mode(want config.Steering, steered bool) Finding {
	f := Finding{Name: "mode", Level: OK, Found: "steering by BPF"}
	switch {
	case want == config.SteeringTakeover:
		f.Found = "takeover, as the configuration says: generations share their listening sockets"
	case !steered && want == config.SteeringBPF:
		f.Level, f.Found, f.Advice = noBPF, "steering: bpf, and this machine cannot", "see below what is missing, or write steering: auto"
	case !steered:
		f.Level, f.Found = noBPF, "takeover: generations share their listening sockets; no probe by the public address, no ramp, no guard"
		f.Advice = "see below what steering by BPF lacks"
	}
	return f
}

// WriteTo writes the report for a person to read.
func (r Report) WriteTo(w io.Writer) (int64, error) {
	width := 0
	for _, f := range r.Findings {
		width = max(width, len(f.Name))
	}
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-4s  %-*s  %s\n", f.Level, width, f.Name, f.Found)
		if f.Advice != "" {
			fmt.Fprintf(&b, "%*s→ %s\n", 4+2+width+2, "", f.Advice)
		}
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// one is a single finding, without a name of its own.
func one(level Level, found, advice string) []Finding {
	return []Finding{{Level: level, Found: found, Advice: advice}}
}

// text reads a file of /proc or /sys, without the line end.
func (o Options) text(path string) (string, error) {
	b, err := o.readFile(path)
	return strings.TrimRight(string(b), "\n"), err
}
