package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/node"
)

// moveTo puts this process, and what it starts from now on, into a control group.
func moveTo(t *testing.T, group string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, os.Getpid()), 0); err != nil {
		t.Fatal(err)
	}
}

// A supervisor that takes over from another control group finds the groups of the
// generations where they are, makes none of its own for them, and removes them and
// what they were in.
func TestReplacedFromAnotherGroup(t *testing.T) {
	_, own := need.Cgroup2(t)
	other := filepath.Join(own, fmt.Sprintf("baton-faults-%d", os.Getpid()))
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the node
		if err := os.Remove(other); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { moveTo(t, own) })
	moveTo(t, other)
	n := node.Start(t, demo.Place{}, demo.Settings{})
	moveTo(t, own)
	if err := n.Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	instance := "baton-" + strings.ReplaceAll(strings.Trim(filepath.Join(n.Dir, "run"), "/"), "/", "-") + "-*"
	groups := func(in string) []string {
		found, err := filepath.Glob(filepath.Join(in, instance, "gen-*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if made, had := groups(own), groups(other); len(made) != 0 || len(had) != 1 {
		t.Errorf("groups of generations: %v, and of before %v", made, had)
	}
	file, err := n.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
		t.Fatalf("a release: %+v, %v", res, err)
	}
	node.Eventually(t, "nothing of the first group is left", func() bool {
		left, err := filepath.Glob(filepath.Join(other, "baton-*"))
		return err == nil && len(left) == 0
	})
}

// A generation that cannot be adopted beside one that serves is told to stop at once:
// nobody would come to it any more.
func TestLeftoverBesideAnAdoptedGeneration(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{})
	run := filepath.Join(n.Dir, "run")
	// Without the account of flows a release is inconclusive, and its generation of
	// before stays, not told to stop.
	n.Kill()
	node.Unpin(t, run)
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	file, err := n.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.Outcome != "inconclusive" {
		t.Fatalf("a release: %+v, %v", res, err)
	}
	if st := status(t, n); len(st.Generations) != 2 || st.Current != 2 {
		t.Fatalf("%+v", st)
	}
	n.Kill()
	loseRecipe(t, filepath.Join(run, "state.json"), 1)
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "the generation that was left has ended", func() bool {
		st := status(t, n)
		return len(st.Generations) == 1 && st.Generations[0].ID == 2 && st.Current == 2
	})
}

// loseRecipe makes a state file say that a generation could not be adopted before.
func loseRecipe(t *testing.T, file string, generation int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	numbers := json.NewDecoder(bytes.NewReader(data))
	numbers.UseNumber() // cookies have 64 bits
	if err := numbers.Decode(&state); err != nil {
		t.Fatal(err)
	}
	for _, g := range state["generations"].([]any) {
		if g := g.(map[string]any); g["id"] == json.Number(strconv.Itoa(generation)) {
			g["recipe"] = nil
		}
	}
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
