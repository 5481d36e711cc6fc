package xdp

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// linkPrefix begins the name of the pin by which the program hangs on an interface.
const linkPrefix = "link-"

func (b *Balancer) linkPin(name string) string { return filepath.Join(b.dir, linkPrefix+name) }

// Hanging are the interfaces that the program was hung on, by this process or one
// before it. One may have vanished since.
func (b *Balancer) Hanging() ([]string, error) {
	entries, err := os.ReadDir(b.dir)
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), linkPrefix); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// Detach takes the program off, also where the interface has vanished.
func (b *Balancer) Detach(name string) error {
	err := os.Remove(b.linkPin(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
