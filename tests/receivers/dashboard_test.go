package receivers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/tests/program"
)

// The dashboards are what Grafana reads, by the types that it publishes, and what
// they ask for is PromQL; the alerting rules are what Prometheus reads.
func TestDashboardsAreRead(t *testing.T) {
	path := pathOf(t, "dashboards", func(t *testing.T, dir string) string {
		copied(t, "testdata/dashboard.go.txt", filepath.Join(dir, "main.go"))
		program.Go(t, dir,
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
	const rules = "../../deploy/alerts/baton.yml"
	files = append(files, rules)
	out, err := exec.Command(path, files...).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}

	// It does say what is wrong.
	for _, wrong := range [][3]string{
		{files[0], `"gridPos"`, `"gridpos"`}, {files[0], `"expr": "`, `"expr": "(`},
		{rules, "expr: ", "exp: "}, {rules, "[10m]", "[10"}, {rules, "{{ $labels.what }}", "{{ $labels.what }"},
	} {
		file, wrong := wrong[0], wrong[1:]
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		spoilt := filepath.Join(t.TempDir(), "spoilt"+filepath.Ext(file))
		if err := os.WriteFile(spoilt, []byte(strings.Replace(string(text), wrong[0], wrong[1], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, spoilt).CombinedOutput(); err == nil {
			t.Errorf("%s in the place of %s: %s", wrong[1], wrong[0], out)
		}
	}
}
