package doctor

import (
	"strings"
	"testing"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/state"
)

func TestNumbers(t *testing.T) {
	running := func(dir string, number uint32) state.Running {
		return state.Running{PID: 7, RuntimeDir: dir, Record: state.Record{ServerID: number}}
	}
	conf := &config.Config{RuntimeDir: "/run/baton", Node: config.Node{ServerID: 42}}
	for _, test := range []struct {
		name  string
		conf  *config.Config
		found []state.Running
		want  []string // level, and words of what is found
	}{
		{"nobody runs, no configuration", nil, nil, nil},
		{"nobody runs", conf, nil, []string{"ok 42: no other"}},
		{"its own runs", conf, []state.Running{running("/run/baton", 42)}, []string{"ok 42: no other"}},
		{"another number", conf, []state.Running{running("/run/other", 43)}, []string{"ok 42: no other"}},
		{"its number", conf, []state.Running{running("/run/baton", 42), running("/run/other", 42)}, []string{"warn 42 is that of the baton of /run/other (pid 7) as well"}},
		{"one number of two others", conf, []state.Running{running("/run/a", 43), running("/run/b", 43)},
			[]string{"ok 42: no other", "warn the baton of /run/a (pid 7) and the baton of /run/b (pid 7) have one node.server_id, 43"}},
		{"two run, no configuration", nil, []state.Running{running("/run/a", 43), running("/run/b", 43), running("/run/c", 44)}, []string{"warn have one node.server_id, 43"}},
		{"of an earlier version", conf, []state.Running{running("/run/a", 0), running("/run/b", 0)}, []string{"ok 42: no other"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := examineNumbers(Options{Config: test.conf, running: func() []state.Running { return test.found }})
			if len(got) != len(test.want) {
				t.Fatalf("%+v, want %v", got, test.want)
			}
			for i, want := range test.want {
				level, words, _ := strings.Cut(want, " ")
				if string(got[i].Level) != level || !strings.Contains(got[i].Found, words) || (level == "warn") != (got[i].Advice != "") {
					t.Errorf("%+v, want %s with %q", got[i], level, words)
				}
			}
		})
	}
}
