package docs

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	descLabels  = regexp.MustCompile(`NewDesc\("(baton_[a-z_]+)", "(?:[^"\\]|\\.)*", (?:nil|\[\]string\{([^}]*)\})`)
	selector    = regexp.MustCompile(`\b(baton_[a-z_]+)(?:\{([^}]*)\})?`)
	labelName   = regexp.MustCompile(`(\w+)(?:=|!=|=~)"`)
	grouping    = regexp.MustCompile(`by \(([^)]*)\)`)
	legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

// What a dashboard asks for is exported, with the labels that it uses. Prometheus
// adds `instance`; a histogram has `le`.
func TestDashboards(t *testing.T) {
	labels := map[string][]string{}
	sources, err := filepath.Glob("../supervisor/admin/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		for _, m := range descLabels.FindAllStringSubmatch(read(t, path), -1) {
			labels[m[1]] = []string{"instance", "le"}
			for _, quoted := range strings.Split(m[2], ",") {
				labels[m[1]] = append(labels[m[1]], strings.Trim(quoted, ` "`))
			}
		}
	}
	files, err := filepath.Glob("../deploy/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("dashboards: %v, %v", files, err)
	}
	for _, file := range files {
		var board struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr, LegendFormat string }
			}
		}
		if err := json.Unmarshal([]byte(read(t, file)), &board); err != nil || len(board.Panels) == 0 {
			t.Fatalf("%s: %d panels, %v", file, len(board.Panels), err)
		}
		for _, panel := range board.Panels {
			for _, target := range panel.Targets {
				asked := selector.FindAllStringSubmatch(target.Expr, -1)
				if len(asked) == 0 {
					t.Errorf("%s: panel %q asks for no metric of ours: %s", file, panel.Title, target.Expr)
				}
				for _, m := range asked {
					known, ok := labels[strings.TrimSuffix(m[1], "_bucket")]
					if !ok {
						t.Errorf("%s: panel %q asks for %s, which is not exported", file, panel.Title, m[1])
						continue
					}
					var used []string
					for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
						used = append(used, l[1])
					}
					for _, by := range grouping.FindAllStringSubmatch(target.Expr, -1) {
						used = append(used, strings.Split(by[1], ", ")...)
					}
					for _, l := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
						used = append(used, l[1])
					}
					for _, l := range used {
						if !slices.Contains(known, l) {
							t.Errorf("%s: panel %q: %s has no label %s", file, panel.Title, m[1], l)
						}
					}
				}
			}
		}
	}
}
