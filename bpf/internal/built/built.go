// Package built lets a process go on with the programs that an earlier one of the same
// build has pinned. Loading them again would change nothing, and cost what the verifier
// and the kernel's type information cost: on a machine that is busy several times as
// much as the rest of an adoption.
//
// A program is pinned under its own name and a sum of the object file that it was loaded
// from. A BPF file system does not outlive the kernel, so what was relocated for the one
// fits the other.
package built

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Program names one program of an object file, with the constants that were set in it.
type Program struct{ name, build string }

// Of is the program of this name in an object file.
func Of(name string, object []byte, constants ...uint32) Program {
	sum := sha256.New()
	sum.Write(object)
	binary.Write(sum, binary.LittleEndian, constants) // a hash takes all
	return Program{name, fmt.Sprintf("%x", sum.Sum(nil)[:8])}
}

// Path is where the program is pinned in a directory.
func (p Program) Path(dir string) string { return filepath.Join(dir, p.name+"-"+p.build) }

// Open opens the program if it is pinned in a directory and uses these maps. The error
// is [os.ErrNotExist] where another one is, or none.
func (p Program) Open(dir string, uses ...*ebpf.Map) (*ebpf.Program, error) {
	program, err := ebpf.LoadPinnedProgram(p.Path(dir), nil)
	if err != nil {
		return nil, err
	}
	if err := usesThem(program, uses); err != nil {
		program.Close()
		return nil, fmt.Errorf("the pinned program %s: %w", p.name, err)
	}
	return program, nil
}

func usesThem(program *ebpf.Program, maps []*ebpf.Map) error {
	info, err := program.Info()
	if err != nil {
		return err
	}
	used, ok := info.MapIDs()
	if !ok {
		return fmt.Errorf("the kernel does not tell its maps: %w", os.ErrNotExist)
	}
	for _, m := range maps {
		info, err := m.Info()
		if err != nil {
			return err
		}
		if id, ok := info.ID(); !ok || !slices.Contains(used, id) {
			return fmt.Errorf("it has another map %s: %w", info.Name, os.ErrNotExist)
		}
	}
	return nil
}

// Pin pins a program that was loaded, in the place of what other builds have pinned in
// the directory.
func (p Program) Pin(dir string, program *ebpf.Program) error {
	others, err := filepath.Glob(filepath.Join(dir, p.name+"-*"))
	if err != nil {
		return err
	}
	for _, path := range append(others, filepath.Join(dir, p.name)) { // the name alone: before there were sums
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return program.Pin(p.Path(dir))
}
