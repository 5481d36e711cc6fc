// Package haste lets a supervisor that begins go before others. While it adopts there is
// none, and on a machine where forty threads want a CPU its turns would be 60 ms apart:
// the start of the process alone, ten milliseconds of work, has taken a second there.
//
// It is in force before the packages of others initialize, for all threads: one that
// waits for another, the runtime's poller or its collector of garbage, waits no shorter
// than that one. What it starts meanwhile, a keeper, inherits it.
package haste

import (
	"os"
	"strconv"
	"sync"
	"syscall"
)

// first is the nice value of who hurries: of -20 to 19, less is more.
const first = -20

// before is the nice value that the process had; begun says whether it was another.
var before, begun = 0, false

func init() {
	if len(os.Args) > 1 && os.Args[1] == "run" { // not the shim, whose second argument is a number
		Begin()
	}
}

// Begin needs CAP_SYS_NICE. Without, the process waits its turn.
var Begin = sync.OnceFunc(func() {
	turn, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0) // the system call tells 20 less it
	if before = 20 - turn; err != nil || before <= first {
		return
	}
	begun = set(first)
})

// set gives all threads a nice value. It looks again until it finds none with another:
// a thread that begins meanwhile has that of the one which made it.
func set(nice int) (done bool) {
	for changed := true; changed; {
		changed = false
		threads, _ := os.ReadDir("/proc/self/task")
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			turn, err := syscall.Getpriority(syscall.PRIO_PROCESS, id)
			if err != nil || 20-turn == nice {
				continue // it has ended, or has it
			}
			if syscall.Setpriority(syscall.PRIO_PROCESS, id, nice) != nil {
				return done
			}
			changed, done = true, true
		}
	}
	return done
}

// Calm ends the hurry. It may be called more than once.
var Calm = sync.OnceFunc(func() {
	if begun {
		set(before)
	}
})
