package faults

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// A supervisor goes before others until it is in charge, and no longer; what it starts
// never does.
func TestHasteEnds(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{})
	usual := nices(t, os.Getpid())[0]
	check := func(when string) {
		t.Helper()
		all := map[string]int{"supervisor": n.PID()}
		for _, g := range status(t, n).Generations {
			all["generation "+strconv.Itoa(g.ID)] = g.PID
		}
		for who, pid := range all {
			// It is asked as soon as it answers, which is just before.
			node.Eventually(t, when+" "+who+" is in no hurry", func() bool {
				for _, nice := range nices(t, pid) {
					if nice < usual {
						return false
					}
				}
				return true
			})
		}
	}
	check("after the start the")
	n.Kill()
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after an adoption the")
	file, err := n.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	check("after a release the")
}

// nices are the nice values of a process's threads (proc_pid_stat(5)).
func nices(t *testing.T, pid int) (all []int) {
	t.Helper()
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %d: %v, %v", pid, threads, err)
	}
	for _, stat := range threads {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		words := strings.Fields(rest)
		if len(words) < 17 {
			t.Fatalf("%s: %s", stat, text)
		}
		nice, err := strconv.Atoi(words[16]) // the 19th of all, and two are before
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, nice)
	}
	return all
}
