package doctor

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

func TestBalancerIsExamined(t *testing.T) {
	with := &config.Config{Balancer: &config.Balancer{Interfaces: []string{"lo", "none0"}}}
	for _, test := range []struct {
		name   string
		config *config.Config
		err    error
		levels []Level
	}{
		{"no file", nil, errors.New("not asked"), nil},
		{"no balancer in it", &config.Config{}, errors.New("not asked"), nil},
		{"all well", with, nil, []Level{OK, OK, Warn}},
		{"an old kernel", with, errors.New("the balancer needs Linux 5.19 or later, and this is 5.15: unknown func"), []Level{Fail, OK, Warn}},
		{"no BPF file system", with, fmt.Errorf("%w: %w", ErrNotTried, unix.ENOENT), []Level{Warn, OK, Warn}},
		{"no privileges", with, unix.EPERM, []Level{Fail, OK, Warn}},
	} {
		var got []Level
		for _, f := range examineBalancer(Options{Config: test.config, Balancer: func() error { return test.err }}) {
			got = append(got, f.Level)
			if f.Found == "" || f.Level != OK && f.Advice == "" {
				t.Errorf("%s: %+v is not whole", test.name, f)
			}
		}
		if len(got) != len(test.levels) {
			t.Errorf("%s: %v, want %v", test.name, got, test.levels)
			continue
		}
		for i := range got {
			if got[i] != test.levels[i] {
				t.Errorf("%s: %v, want %v", test.name, got, test.levels)
			}
		}
	}
}
