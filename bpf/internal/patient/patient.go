// Package patient updates maps that cannot take an element yet.
package patient

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	enough = 5 * time.Second
	pause  = time.Millisecond
)

// Update repeats an update that fails for want of memory. A hash map that grows
// takes its elements from a small store, which the kernel refills beside
// (kernel/bpf/memalloc.c): thousands of updates in a row find it empty now and
// then, on an idle machine with much memory too.
func Update(update func() error) error { return While(unix.ENOMEM, update) }

// While repeats an update that fails for this reason, for a while.
func While(reason unix.Errno, update func() error) error {
	for late := time.Now().Add(enough); ; time.Sleep(pause) {
		if err := update(); !errors.Is(err, reason) || time.Now().After(late) {
			return err
		}
	}
}
