package state

import (
	"encoding/json"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/spawn"
)

// version is the layout of the state file, splitVersion that of one with listeners
// that are split among generations: an earlier version, which would leave their shifts
// as they are, does not read it. Nor is a newer one read here.
const (
	version      = 2
	splitVersion = 3
)

// Record is what the next supervisor has to know if this one dies.
type Record struct {
	Version        int               `json:"version"`             // given by [File.Save]
	Boot           string            `json:"boot"`                // processes of another boot are not ours
	ServerID       uint32            `json:"server_id,omitempty"` // of who wrote it; 0: an earlier version
	Clock          Clock             `json:"clock"`               // when this was written
	NextGeneration uint64            `json:"next_generation"`
	NextRelease    uint64            `json:"next_release"`
	Generations    []Generation      `json:"generations"`
	Release        *Release          `json:"release,omitempty"`     // that is under way
	Previous       *Recipe           `json:"previous,omitempty"`    // what a rollback goes back to
	PreviousOf     []string          `json:"previous_of,omitempty"` // and for which listeners; none: all
	Salt           uint32            `json:"salt,omitempty"`        // of the shift in force
	Current        uint64            `json:"current,omitempty"`     // generation of the listeners that Own does not name
	Own            map[string]uint64 `json:"own,omitempty"`         // generations by listener, where they are split
	Loan           *Loan             `json:"loan,omitempty"`
}

// layout is the oldest that can tell what is so.
func (st *Record) layout() int {
	if st.Own != nil || st.Loan != nil || st.PreviousOf != nil || st.Release != nil && st.Release.Listeners != nil {
		return splitVersion
	}
	return version
}

// Clock is one moment by the clock that is set, and by one that is not.
type Clock struct {
	Wall time.Time     `json:"wall"`
	Boot time.Duration `json:"boot"` // since the machine's start, CLOCK_BOOTTIME
}

// Now is this moment.
func Now() Clock {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return Clock{time.Now(), time.Duration(ts.Nano())}
}

// SetTo makes the times in a record those of the clock as it is now: where that was set
// meanwhile, a drain would end at once, or hours late.
func (st *Record) SetTo(at Clock) {
	jump := at.Wall.Sub(st.Clock.Wall) - (at.Boot - st.Clock.Boot)
	for i := range st.Generations {
		g := &st.Generations[i]
		for _, t := range []*time.Time{&g.Started, &g.Deadline, &g.ToldAt} {
			if !t.IsZero() {
				*t = t.Add(jump)
			}
		}
	}
	st.Clock = at
}

// Text is what a record says, whenever it was written: the same for two that say the same.
func (st Record) Text() string {
	st.Version, st.Clock = st.layout(), Clock{}
	data, err := json.Marshal(st)
	if err != nil {
		return err.Error() // File.Save says it, too
	}
	return string(data)
}

// Generation is one as the next supervisor finds it. What it cannot
// read here it asks the keeper and the kernel.
type Generation struct {
	ID        uint64              `json:"id"`
	PID       int                 `json:"pid"`
	StartTime uint64              `json:"start_time"`
	Slot      uint8               `json:"slot"`
	State     string              `json:"state"` // the supervisor's word for where it stands
	Started   time.Time           `json:"started"`
	Deadline  time.Time           `json:"deadline"`
	Told      bool                `json:"told"` // to stop, by SIGTERM
	ToldAt    time.Time           `json:"told_at"`
	Recipe    *Recipe             `json:"recipe"`
	Cookies   map[string][]uint64 `json:"cookies"` // of its listening sockets, by listener
}

// Recipe is what a generation runs, but for what the keeper has.
type Recipe struct {
	Binary string      `json:"binary"`
	Stamp  spawn.Stamp `json:"stamp"`
	Config string      `json:"config"` // the file's name; the text is with the keeper
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`
}

// Loan is what a rollback gives back at once.
type Loan struct {
	By   uint64            `json:"by"`
	From map[string]uint64 `json:"from"` // by listener
}

// Release is the one that was under way.
type Release struct {
	ID        uint64            `json:"id"`
	Cause     string            `json:"cause"`
	Started   time.Time         `json:"started"`
	Candidate uint64            `json:"candidate"` // 0: not started
	Previous  uint64            `json:"previous"`
	Listeners []string          `json:"listeners,omitempty"` // that it is of; none: all
	Own       map[string]uint64 `json:"own,omitempty"`       // as it was before
}

// BootID tells one boot of the machine from another.
func BootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
