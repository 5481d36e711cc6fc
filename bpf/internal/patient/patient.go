// Package patient updates hash maps that are filled fast.
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
func Update(update func() error) error {
	for late := time.Now().Add(enough); ; time.Sleep(pause) {
		if err := update(); !errors.Is(err, unix.ENOMEM) || time.Now().After(late) {
			return err
		}
	}
}
