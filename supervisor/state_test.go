package supervisor

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The file is the old or the new state, whole, at whatever instant the writer
// is killed.
func TestStateSurvivesACrashOfItsWriter(t *testing.T) {
	file := stateFile{filepath.Join(t.TempDir(), "state.json")}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seen := uint64(0)
	// A writer may be killed before it has written anything; on a busy machine most are.
	for round, late := 0, time.Now().Add(time.Minute); round < 20 || seen < 20 && time.Now().Before(late); round++ {
		cmd := exec.Command(exe, asGeneration, "write-state")
		cmd.Env = append(os.Environ(), "STATE_FILE="+file.path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(5+rand.IntN(40)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		st, err := file.load()
		if err != nil {
			t.Fatal(err)
		}
		if st.NextGeneration < seen || uint64(len(st.Generations)) != st.NextGeneration%100 && st.NextGeneration > 1 {
			t.Fatalf("after generation %d: a torn state: next %d with %d generations", seen, st.NextGeneration, len(st.Generations))
		}
		seen = st.NextGeneration
	}
	if seen < 20 {
		t.Errorf("only %d states were written", seen)
	}
}

// writeStates is what is killed: it writes one state after the other.
func writeStates(path string) {
	file := stateFile{path}
	st, err := file.load()
	for err == nil {
		st.NextGeneration++
		st.Generations = make([]stateGeneration, st.NextGeneration%100)
		err = file.save(st)
	}
}

func TestStateThatCannotBeRead(t *testing.T) {
	for content, want := range map[string]string{
		"":                "is damaged",
		"{":               "is damaged",
		`{"version": 99}`: "has layout 99, this baton reads layouts 2 and 3",
	} {
		file := stateFile{filepath.Join(t.TempDir(), "state.json")}
		if err := os.WriteFile(file.path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := file.load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}

func TestStateRoundTrip(t *testing.T) {
	file := stateFile{filepath.Join(t.TempDir(), "state.json")}
	if st, err := file.load(); err != nil || st.NextGeneration != 1 || st.NextRelease != 1 {
		t.Errorf("a first start: %+v, %v", st, err)
	}
	want := state{Version: stateVersion, Boot: "b", NextGeneration: 7, NextRelease: 9, Generations: []stateGeneration{{ID: 6, PID: 123, StartTime: 456, Slot: 3, State: Serving, Told: true, Cookies: map[string][]uint64{"web": {1, 2}}}}}
	if err := file.save(want); err != nil {
		t.Fatal(err)
	}
	if got, err := file.load(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A clock that was set while there was no supervisor neither ends a drain nor draws it out.
func TestTimesFollowAClockThatIsSet(t *testing.T) {
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, jump := range []time.Duration{0, time.Hour, -time.Hour} {
		st := state{Clock: clock{begun, time.Minute}, Generations: []stateGeneration{{Deadline: begun.Add(10 * time.Second)}}}
		at := clock{begun.Add(4*time.Second + jump), time.Minute + 4*time.Second}
		st.setTo(at)
		g := st.Generations[0]
		if left := g.Deadline.Sub(at.Wall); left != 6*time.Second || !g.ToldAt.IsZero() || st.Clock != at {
			t.Errorf("set by %v: %v are left; %+v", jump, left, st)
		}
	}
}

func TestParseStartTime(t *testing.T) {
	// A process may call itself anything, a bracket and a space included.
	stat := "42 (a) b) S " + strings.Repeat("1 ", 18) + "777 1 1\n"
	if got, err := parseStartTime([]byte(stat)); err != nil || got != 777 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := parseStartTime([]byte("nonsense")); err == nil {
		t.Error("nonsense was accepted")
	}
}
