package steer

import (
	"errors"
	"os"

	"github.com/baton-mesh/baton/bpf/reuseport"
)

// openNode opens the tables: again, those of an earlier supervisor, which its
// generations are in, from their pins or from its keeper, or else fresh ones.
func openNode(pins string, again bool, kept map[string]int) (_ *reuseport.Node, fresh bool, err error) {
	if again && pins != "" {
		n, err := reuseport.Reopen(pins)
		if !errors.Is(err, os.ErrNotExist) {
			return n, false, err
		}
	}
	if again {
		n, err := reuseport.Regain(pins, kept)
		if !errors.Is(err, os.ErrNotExist) {
			return n, false, err
		}
	}
	n, err := reuseport.Open(pins)
	return n, true, err
}
