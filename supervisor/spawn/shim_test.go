package spawn

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/spawn/shim"
)

// Nothing but the standard library is initialized before the shim works: what else
// an executable imports would be paid for by each start of a generation.
func TestShimComesFirst(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Its supervisor is none, so it gives up at its first step.
	cmd := exec.CommandContext(t.Context(), exe, "-1", "-1", "0", "0", "server")
	cmd.Args[0] = shim.Name
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != shim.Failed {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	seen := 0
	for line := range strings.Lines(stderr.String()) {
		fields := strings.Fields(line) // "init PACKAGE @0.1 ms, …"
		if len(fields) < 2 || fields[0] != "init" {
			continue
		}
		seen++
		if first, _, _ := strings.Cut(fields[1], "/"); strings.Contains(first, ".") {
			t.Errorf("%s comes before the shim", fields[1])
		}
	}
	if seen == 0 {
		t.Fatalf("the runtime has traced no package: %s", stderr.Bytes())
	}
}
