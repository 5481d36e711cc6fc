package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Name is that of the file in a runtime directory.
const Name = "state.json"

// File keeps a record on disk: always the old or the new one, whole.
type File struct{ path string }

// In is the file of a runtime directory.
func In(runtimeDir string) File { return File{filepath.Join(runtimeDir, Name)} }

// Load reads the record. No file is a first start.
func (f File) Load() (Record, error) {
	first := Record{Version: version, NextGeneration: 1, NextRelease: 1}
	data, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return first, nil
	}
	if err != nil {
		return first, err
	}
	var st Record
	if err := json.Unmarshal(data, &st); err != nil {
		return first, fmt.Errorf("%s is damaged: %w; move it away to start anew (generations are then counted from 1, and what an earlier supervisor left running is not ended)", f.path, err)
	}
	if st.Version != version && st.Version != splitVersion {
		return first, fmt.Errorf("%s has layout %d, this baton reads layouts %d and %d: start the version that wrote it, or move the file away", f.path, st.Version, version, splitVersion)
	}
	return st, nil
}

// Save replaces the file. A crash at any instant leaves one of the two: the
// data is on disk before the name points to it, the name before Save returns.
func (f File) Save(st Record) (err error) {
	st.Version = st.layout()
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
