package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// stateVersion is the layout of the state file, splitVersion that of one with listeners
// that are split among generations: an earlier version, which would leave their shifts
// as they are, does not read it. Nor is a newer one read here.
const (
	stateVersion = 2
	splitVersion = 3
)

// state is what the next supervisor has to know if this one dies.
type state struct {
	Version        int               `json:"version"`
	Boot           string            `json:"boot"`  // processes of another boot are not ours
	Clock          clock             `json:"clock"` // when this was written
	NextGeneration uint64            `json:"next_generation"`
	NextRelease    uint64            `json:"next_release"`
	Generations    []stateGeneration `json:"generations"`
	Release        *stateRelease     `json:"release,omitempty"`     // that is under way
	Previous       *stateRecipe      `json:"previous,omitempty"`    // what a rollback goes back to
	PreviousOf     []string          `json:"previous_of,omitempty"` // and for which listeners; none: all
	Salt           uint32            `json:"salt,omitempty"`        // of the shift in force
	Current        uint64            `json:"current,omitempty"`     // generation of the listeners that Own does not name
	Own            map[string]uint64 `json:"own,omitempty"`         // generations by listener, where they are split
	Loan           *stateLoan        `json:"loan,omitempty"`
}

// clock is one moment by the clock that is set, and by one that is not.
type clock struct {
	Wall time.Time     `json:"wall"`
	Boot time.Duration `json:"boot"` // since the machine's start, CLOCK_BOOTTIME
}

func now() clock {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return clock{time.Now(), time.Duration(ts.Nano())}
}

// setTo makes the times in a state those of the clock as it is now: where that was set
// meanwhile, a drain would end at once, or hours late.
func (st *state) setTo(at clock) {
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

// stateGeneration is a generation as the next supervisor finds it. What it cannot
// read here it asks the keeper and the kernel.
type stateGeneration struct {
	ID        uint64              `json:"id"`
	PID       int                 `json:"pid"`
	StartTime uint64              `json:"start_time"`
	Slot      uint8               `json:"slot"`
	State     State               `json:"state"`
	Started   time.Time           `json:"started"`
	Deadline  time.Time           `json:"deadline"`
	Told      bool                `json:"told"` // to stop, by SIGTERM
	ToldAt    time.Time           `json:"told_at"`
	Recipe    *stateRecipe        `json:"recipe"`
	Cookies   map[string][]uint64 `json:"cookies"` // of its listening sockets, by listener
}

type stateRecipe struct {
	Binary string      `json:"binary"`
	Stamp  spawn.Stamp `json:"stamp"`
	Config string      `json:"config"` // the file's name; the text is with the keeper
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`
}

// stateLoan is what a rollback gives back at once.
type stateLoan struct {
	By   uint64            `json:"by"`
	From map[string]uint64 `json:"from"` // by listener
}

type stateRelease struct {
	ID        uint64            `json:"id"`
	Cause     string            `json:"cause"`
	Started   time.Time         `json:"started"`
	Candidate uint64            `json:"candidate"` // 0: not started
	Previous  uint64            `json:"previous"`
	Listeners []string          `json:"listeners,omitempty"` // that it is of; none: all
	Own       map[string]uint64 `json:"own,omitempty"`       // as it was before
}

func recordOf(r *recipe) *stateRecipe {
	return &stateRecipe{Binary: r.binary.Path, Stamp: r.binary.Stamp(), Config: r.configPath, UID: r.account.UID, GID: r.account.GID}
}

// record is a generation for the state file. Supervisor.mu is held.
func (g *generation) record() stateGeneration {
	st := stateGeneration{ID: g.id, PID: g.process.PID, StartTime: g.startTime, Slot: g.slot, State: g.state, Started: g.started, Deadline: g.deadline, Told: g.told, ToldAt: g.toldAt}
	if g.recipe != nil {
		st.Recipe, st.Cookies = recordOf(g.recipe), map[string][]uint64{}
		for name, workers := range g.sockets {
			for _, sock := range workers {
				st.Cookies[name] = append(st.Cookies[name], sock.Cookie)
			}
		}
		if g.stood != nil {
			st.Cookies = g.stood
		}
	}
	return st
}

// stateFile keeps a state on disk: always the old or the new one, whole.
type stateFile struct{ path string }

// load reads the state. No file is a first start.
func (f stateFile) load() (state, error) {
	first := state{Version: stateVersion, NextGeneration: 1, NextRelease: 1}
	data, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return first, nil
	}
	if err != nil {
		return first, err
	}
	var st state
	if err := json.Unmarshal(data, &st); err != nil {
		return first, fmt.Errorf("%s is damaged: %w; move it away to start anew (generations are then counted from 1, and what an earlier supervisor left running is not ended)", f.path, err)
	}
	if st.Version != stateVersion && st.Version != splitVersion {
		return first, fmt.Errorf("%s has layout %d, this baton reads layouts %d and %d: start the version that wrote it, or move the file away", f.path, st.Version, stateVersion, splitVersion)
	}
	return st, nil
}

// save replaces the file. A crash at any instant leaves one of the two: the
// data is on disk before the name points to it, the name before save returns.
func (f stateFile) save(st state) (err error) {
	data, err := json.Marshal(st) // without indentation: it is written ten times in a release, and may have thousands of sockets in it
	if err != nil {
		return err
	}
	dir := filepath.Dir(f.path)
	tmp, err := os.OpenFile(f.path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(data, '\n'))
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), f.path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// MayFollow says why a supervisor of this version could not adopt what another one has
// in a runtime directory: its state, its keeper or its tables have another version. To
// be asked before it is made to leave.
func MayFollow(runtimeDir string) error {
	if _, err := (stateFile{filepath.Join(runtimeDir, "state.json")}).load(); err != nil {
		return err
	}
	if c, err := keeper.Connect(KeeperSocket(runtimeDir)); err == nil {
		defer c.Close()
		if err := c.Ping(); errors.Is(err, keeper.ErrProtocol) {
			return err
		}
	}
	if err := reuseport.Pinned(steer.Pins(instanceName(runtimeDir))); errors.Is(err, reuseport.ErrLayout) {
		return err
	}
	return nil
}

// AskToLeave makes the supervisor that works in a runtime directory give way
// (SIGUSR2), and returns when it has, or when ctx ends. It asks again while a
// release is under way there. Where nobody works it returns at once.
func AskToLeave(ctx context.Context, runtimeDir string) error {
	path := filepath.Join(runtimeDir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return nil // free, and free again with f
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			return fmt.Errorf("%s names no supervisor", path)
		}
		if err := unix.Kill(pid, unix.SIGUSR2); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ask supervisor %d to give way: %w", pid, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("supervisor %d does not give way: %w", pid, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// bootID tells one boot of the machine from another.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// lockRuntimeDir makes sure that one supervisor works in a directory. The lock
// ends with the process.
func lockRuntimeDir(dir string) (*os.File, error) {
	// Generations of any user pass through it to the notify socket.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make runtime_dir: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("runtime_dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("runtime_dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(f.Name())
		f.Close()
		return nil, fmt.Errorf("another supervisor (pid %s) works in %s", strings.TrimSpace(string(pid)), dir)
	}
	f.Truncate(0)
	fmt.Fprintln(f, os.Getpid())
	return f, nil
}
