package receivers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The dashboards are what Grafana reads, by the types that it publishes, and what
// they ask for is PromQL.
func TestDashboardsAreRead(t *testing.T) {
	path := program(t, "dashboards", func(t *testing.T, dir string) string {
		copied(t, "testdata/dashboard.go.txt", filepath.Join(dir, "main.go"))
		run(t, dir,
			[]string{"mod", "init", "dashboards"},
			[]string{"get", "github.com/grafana/grafana-foundation-sdk/go@v0.0.22", "github.com/prometheus/prometheus@v0.316.0"},
			[]string{"mod", "tidy"},
			[]string{"build", "-o", "dashboards", "."})
		return filepath.Join(dir, "dashboards")
	})
	files, err := filepath.Glob("../../deploy/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("dashboards: %v, %v", files, err)
	}
	out, err := exec.Command(path, files...).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}

	// It does say what is wrong.
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range [][2]string{{`"gridPos"`, `"gridpos"`}, {`"expr": "`, `"expr": "(`}} {
		spoilt := filepath.Join(t.TempDir(), "spoilt.json")
		if err := os.WriteFile(spoilt, []byte(strings.Replace(string(text), wrong[0], wrong[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, spoilt).CombinedOutput(); err == nil {
			t.Errorf("%s in the place of %s: %s", wrong[1], wrong[0], out)
		}
	}
}
