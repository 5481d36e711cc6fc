// Package bpf_test measures the programs of all hooks.
package bpf_test

import (
	"errors"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/baton-mesh/baton/tests/need"
)

var figures = regexp.MustCompile(`processed (\d+) insns .* max_states_per_insn|stack depth ([\d+]+)`)

// most bounds what the verifier walks of programs that run for each segment of a
// connection, or several times for it. They have no loops, so that no run is longer:
// today 118 and 139 instructions.
var most = map[string]int{
	"sockops/sockops_bpfel.o server": 160,
	"sockops/sockops_bpfel.o client": 180,
}

// TestVerifier loads every compiled program and shows what the kernel's verifier
// says of its size: instructions walked, and bytes of stack.
func TestVerifier(t *testing.T) {
	need.Root(t, "loading BPF programs")
	objects, err := filepath.Glob("*/*_bpfel.o")
	if err != nil || len(objects) == 0 {
		t.Fatalf("no compiled programs: %v", err)
	}
	for _, path := range objects {
		spec, err := ebpf.LoadCollectionSpec(path)
		if err != nil {
			t.Fatal(err)
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			t.Fatalf("%s: %+v", path, refused)
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for name, prog := range coll.Programs {
			walked, stack := "?", "?"
			for _, m := range figures.FindAllStringSubmatch(prog.VerifierLog, -1) {
				if m[1] != "" {
					walked = m[1]
				}
				if m[2] != "" {
					stack = m[2]
				}
			}
			t.Logf("%-32s %-10s %4d instructions, %6s walked by the verifier, %s bytes of stack", path, name, len(spec.Programs[name].Instructions), walked, stack)
			if walked == "?" {
				t.Errorf("%s: the verifier's log has no figures:\n%s", name, prog.VerifierLog)
			}
			limit, bounded := most[path+" "+name]
			if n, _ := strconv.Atoi(walked); bounded && n > limit {
				t.Errorf("%s: the verifier walks %d instructions, more than %d: each segment pays for them", name, n, limit)
			}
		}
		coll.Close()
	}
}
