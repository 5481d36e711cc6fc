package state

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"
)

// writesTo names the file that the test binary, as a child, writes again and again.
const writesTo = "STATE_TEST_FILE"

func TestMain(m *testing.M) {
	if path := os.Getenv(writesTo); path != "" {
		writeStates(path)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The file is the old or the new state, whole, at whatever instant the writer
// is killed.
func TestStateSurvivesACrashOfItsWriter(t *testing.T) {
	file := In(t.TempDir())
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seen := uint64(0)
	// A writer may be killed before it has written anything; on a busy machine most are.
	for round, late := 0, time.Now().Add(time.Minute); round < 20 || seen < 20 && time.Now().Before(late); round++ {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), writesTo+"="+file.path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(5+rand.IntN(40)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		st, err := file.Load()
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
	file := File{path}
	st, err := file.Load()
	for err == nil {
		st.NextGeneration++
		st.Generations = make([]Generation, st.NextGeneration%100)
		err = file.Save(st)
	}
}

func TestStateThatCannotBeRead(t *testing.T) {
	for content, want := range map[string]string{
		"":                "is damaged",
		"{":               "is damaged",
		`{"version": 99}`: "has layout 99, this baton reads layouts 2 and 3",
	} {
		file := In(t.TempDir())
		if err := os.WriteFile(file.path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := file.Load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}

// Whatever is missing at its end, half a record is not taken for one.
func TestStateThatIsCutOff(t *testing.T) {
	file := In(t.TempDir())
	st := Record{Boot: "b", NextGeneration: 7, NextRelease: 9, Previous: &Recipe{Binary: "p"}, Own: map[string]uint64{"web": 6},
		Generations: []Generation{{ID: 6, PID: 123, State: "serving", Recipe: &Recipe{}, Cookies: map[string][]uint64{"web": {1}}}}}
	if err := file.Save(st); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file.path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) - 1 { // the last octet ends the line
		if err := os.WriteFile(file.path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := file.Load(); err == nil || !strings.Contains(err.Error(), "is damaged") {
			t.Fatalf("cut off after %d of %d: %+v, %v", n, len(whole), got, err)
		}
	}
}

func TestStateRoundTrip(t *testing.T) {
	file := In(t.TempDir())
	if st, err := file.Load(); err != nil || st.NextGeneration != 1 || st.NextRelease != 1 {
		t.Errorf("a first start: %+v, %v", st, err)
	}
	want := Record{Version: version, Boot: "b", NextGeneration: 7, NextRelease: 9, Generations: []Generation{{ID: 6, PID: 123, StartTime: 456, Slot: 3, State: "serving", Told: true, Cookies: map[string][]uint64{"web": {1, 2}}}}}
	if err := file.Save(want); err != nil {
		t.Fatal(err)
	}
	if got, err := file.Load(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A clock that was set while there was no supervisor neither ends a drain nor draws it out.
func TestTimesFollowAClockThatIsSet(t *testing.T) {
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, jump := range []time.Duration{0, time.Hour, -time.Hour} {
		st := Record{Clock: Clock{begun, time.Minute}, Generations: []Generation{{Deadline: begun.Add(10 * time.Second)}}}
		at := Clock{begun.Add(4*time.Second + jump), time.Minute + 4*time.Second}
		st.SetTo(at)
		g := st.Generations[0]
		if left := g.Deadline.Sub(at.Wall); left != 6*time.Second || !g.ToldAt.IsZero() || st.Clock != at {
			t.Errorf("set by %v: %v are left; %+v", jump, left, st)
		}
	}
}

// A version that knows of no split listeners must not go on where there are some.
func TestLayoutFollowsWhatIsSaid(t *testing.T) {
	for name, tt := range map[string]struct {
		of   Record
		want int
	}{
		"whole":                 {Record{Release: &Release{ID: 1, Own: map[string]uint64{"a": 1}}}, version},
		"split":                 {Record{Own: map[string]uint64{"a": 1}}, splitVersion},
		"a loan":                {Record{Loan: &Loan{By: 1}}, splitVersion},
		"a split release":       {Record{Release: &Release{ID: 1, Listeners: []string{"a"}}}, splitVersion},
		"a rollback of a split": {Record{PreviousOf: []string{"a"}}, splitVersion},
		"a split that is over":  {Record{Version: splitVersion}, version},
	} {
		file := In(t.TempDir())
		if err := file.Save(tt.of); err != nil {
			t.Fatal(err)
		}
		if got, err := file.Load(); err != nil || got.Version != tt.want {
			t.Errorf("%s: version %d, %v; want %d", name, got.Version, err, tt.want)
		}
	}
}

// A supervisor that works in a directory is found by its lock, and no more when it has
// let go of it.
func TestRunning(t *testing.T) {
	dir := t.TempDir()
	mine := func() (all []Running) {
		for _, r := range AllRunning() {
			if r.RuntimeDir == dir {
				all = append(all, r)
			}
		}
		return all
	}
	if err := In(dir).Save(Record{ServerID: 77}); err != nil {
		t.Fatal(err)
	}
	if got := mine(); got != nil {
		t.Errorf("%+v: nobody works there", got)
	}
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if got := mine(); len(got) != 1 || got[0].PID != os.Getpid() || got[0].Record.ServerID != 77 {
		t.Errorf("%+v", got)
	}
	lock.Close()
	if got := mine(); got != nil {
		t.Errorf("%+v: it has let go", got)
	}
}

// Records that say the same have the same text, whenever they were written, and no others.
func TestText(t *testing.T) {
	one := Record{NextRelease: 7, Clock: Clock{Wall: time.Now(), Boot: time.Hour}}
	two := Record{NextRelease: 7, Version: version}
	if one.Text() != two.Text() {
		t.Errorf("%s, %s", one.Text(), two.Text())
	}
	if two.NextRelease++; one.Text() == two.Text() {
		t.Errorf("another record: %s", two.Text())
	}
}

// The clock that nobody sets has been going since the machine's start.
func TestClockGoes(t *testing.T) {
	before := Now()
	time.Sleep(time.Millisecond)
	if after := Now(); before.Boot <= 0 || after.Boot-before.Boot < time.Millisecond {
		t.Errorf("%v, and a millisecond later %v", before.Boot, after.Boot)
	}
}
