package spawn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// forkExec is not os.StartProcess: that would take *os.File, and making one of a
// listening socket turns the shared file description blocking.
var forkExec = syscall.ForkExec

// fork makes the process, in a group if there is one: born there, or else put there
// before the shim goes on. Being born there takes clone3(2), which filters of system
// calls cannot look into and therefore refuse: systemd's RestrictNamespaces=, and those
// of container runtimes.
func (p *Process) fork(argv []string, attr *syscall.ProcAttr, group *os.File) (err error) {
	if group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
	}
	p.PID, err = forkExec("/proc/self/exe", argv, attr)
	move := group != nil && errors.Is(err, syscall.ENOSYS)
	if move {
		attr.Sys.UseCgroupFD = false
		p.PID, err = forkExec("/proc/self/exe", argv, attr)
	}
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	if !move {
		return nil
	}
	if err := os.WriteFile(filepath.Join(group.Name(), "cgroup.procs"), []byte(strconv.Itoa(p.PID)), 0); err != nil {
		p.Signal(syscall.SIGKILL)
		p.Wait()
		p.Close()
		return fmt.Errorf("move to a cgroup: %w", err)
	}
	return nil
}
