package balancer

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/bpffs"
	"github.com/baton-mesh/baton/bpf/xdp"
	"github.com/baton-mesh/baton/supervisor/balancer/maglev"
)

// Program is the XDP program with its tables, as [Kernel] and [Hanger].
type Program struct {
	*xdp.Balancer
	lock *os.File
}

// Held is what the tables hold. Of rings they know the slots alone, so that each
// is written again.
func (p *Program) Held() (Tables, error) {
	held, err := p.Balancer.Held()
	t := Tables{held.Reals, held.ServerIDs, held.VIPs, map[uint32][]Share{}}
	for _, id := range held.Rings {
		t.Rings[id] = []Share{{}}
	}
	return t, err
}

// pinDir is where the tables of a runtime directory are pinned.
func pinDir(runtimeDir string) (string, error) {
	sum := sha256.Sum256([]byte(filepath.Clean(runtimeDir)))
	return bpffs.Mounted(fmt.Sprintf("balancer-%x", sum[:8]))
}

// lock keeps a second balancer from the tables of a runtime directory.
func lock(runtimeDir string) (*os.File, error) {
	if err := os.MkdirAll(runtimeDir, 0o711); err != nil {
		return nil, fmt.Errorf("make runtime_dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(runtimeDir, "balancer.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("runtime_dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another balancer works in %s", runtimeDir)
	}
	return f, nil
}

// Open loads the program, with the tables that the process before has left.
func Open(runtimeDir string) (*Program, error) {
	held, err := lock(runtimeDir)
	if err != nil {
		return nil, err
	}
	dir, err := pinDir(runtimeDir)
	if err == nil {
		var b *xdp.Balancer
		if b, err = xdp.Open(xdp.Options{Dir: dir, RingSize: maglev.Small}); err == nil {
			return &Program{b, held}, nil
		}
	}
	held.Close()
	return nil, err
}

// Remove takes the program off all interfaces, with its tables.
func Remove(runtimeDir string) error {
	held, err := lock(runtimeDir)
	if err != nil {
		return err
	}
	defer held.Close()
	dir, err := pinDir(runtimeDir)
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Close ends the use of the tables. They stay, and the program goes on.
func (p *Program) Close() error {
	defer p.lock.Close()
	return p.Balancer.Close()
}
