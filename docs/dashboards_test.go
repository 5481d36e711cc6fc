package docs

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var (
	descLabels  = regexp.MustCompile(`NewDesc\("(baton_[a-z_]+)", "(?:[^"\\]|\\.)*", (?:nil|\[\]string\{([^}]*)\})`)
	selector    = regexp.MustCompile(`\b(baton_[a-z_]+)(?:\{([^}]*)\})?`)
	labelName   = regexp.MustCompile(`(\w+)(?:=|!=|=~)"`)
	grouping    = regexp.MustCompile(`by \(([^)]*)\)`)
	alertLabel  = regexp.MustCompile(`\{\{ \$labels\.(\w+) \}\}`)
	legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

// exportedLabels are the labels of each metric that there is. Prometheus adds
// `instance`; a histogram has `le`.
func exportedLabels(t *testing.T) map[string][]string {
	t.Helper()
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
	return labels
}

// asks holds what is asked of Prometheus, and what is made of the answer, against
// the metrics that there are and their labels.
func asks(t *testing.T, where string, labels map[string][]string, expr string, usedLabels ...string) {
	t.Helper()
	asked := selector.FindAllStringSubmatch(expr, -1)
	if len(asked) == 0 {
		t.Errorf("%s asks for no metric of ours: %s", where, expr)
	}
	for _, m := range asked {
		known, ok := labels[strings.TrimSuffix(m[1], "_bucket")]
		if !ok {
			t.Errorf("%s asks for %s, which is not exported", where, m[1])
			continue
		}
		used := slices.Clone(usedLabels)
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			used = append(used, l[1])
		}
		for _, by := range grouping.FindAllStringSubmatch(expr, -1) {
			used = append(used, strings.Split(by[1], ", ")...)
		}
		for _, l := range used {
			if !slices.Contains(known, l) {
				t.Errorf("%s: %s has no label %s", where, m[1], l)
			}
		}
	}
}

// labelsIn are the labels that a text shows.
func labelsIn(pattern *regexp.Regexp, text string) (all []string) {
	for _, l := range pattern.FindAllStringSubmatch(text, -1) {
		all = append(all, l[1])
	}
	return all
}

// What a dashboard asks for is exported, with the labels that it uses.
func TestDashboards(t *testing.T) {
	labels := exportedLabels(t)
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
				asks(t, fmt.Sprintf("%s: panel %q", file, panel.Title), labels, target.Expr, labelsIn(legendLabel, target.LegendFormat)...)
			}
		}
	}
}

// What an alerting rule asks for is exported, with the labels that it and its words
// use; each says whom it is for, and what is so.
func TestAlerts(t *testing.T) {
	labels := exportedLabels(t)
	files, err := filepath.Glob("../deploy/alerts/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("alerts: %v, %v", files, err)
	}
	for _, file := range files {
		var rules struct {
			Groups []struct {
				Name  string
				Rules []struct {
					Alert, Expr, For string
					Labels           struct{ Severity string }
					Annotations      struct{ Summary, Description string }
				}
			}
		}
		d := yaml.NewDecoder(strings.NewReader(read(t, file)))
		d.KnownFields(true)
		if err := d.Decode(&rules); err != nil || len(rules.Groups) == 0 {
			t.Fatalf("%s: %+v, %v", file, rules, err)
		}
		for _, group := range rules.Groups {
			for _, r := range group.Rules {
				where := file + ": " + r.Alert
				asks(t, where, labels, r.Expr, labelsIn(alertLabel, r.Annotations.Summary+r.Annotations.Description)...)
				if (r.Labels.Severity != "page" && r.Labels.Severity != "ticket") || r.Annotations.Summary == "" {
					t.Errorf("%s: %+v", where, r)
				}
			}
		}
	}
}
