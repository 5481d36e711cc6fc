//go:build killat

package main

import (
	"os"
	"path/filepath"
	"syscall"
)

// A binary with this file lets the supervisor die at a transition: the one whose name
// stands in the file kill-at of its runtime directory, which it takes away before. What
// it has passed it adds to the file transitions there, a line each.
func init() {
	killAt = func(dir string) func(string) {
		return func(transition string) {
			passed, err := os.OpenFile(filepath.Join(dir, "transitions"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err == nil {
				passed.WriteString(transition + "\n")
				passed.Close()
			}
			at := filepath.Join(dir, "kill-at")
			if text, err := os.ReadFile(at); err != nil || string(text) != transition || os.Remove(at) != nil {
				return
			}
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // nothing is done after it
		}
	}
}
