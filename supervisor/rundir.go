package supervisor

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/baton-mesh/baton/supervisor/state"
)

// restoreDir makes again what somebody has removed of the runtime directory, a cleaner of
// temporary files perhaps. Without the lock another supervisor could begin beside this
// one, without the state file or the keeper's socket the next one would find less, and
// without the notify socket no generation would be heard. The keeper's client and the
// admin server look after their own. said is the trouble that was told last.
func (s *Supervisor) restoreDir(said *string) {
	dir := s.config.RuntimeDir
	held := state.Held(s.lock, dir)
	if !held {
		lock, err := state.Lock(dir)
		if err != nil {
			if *said != err.Error() {
				s.log.Error("runtime_dir was removed, and cannot be made again", "directory", dir, "error", err)
			}
			*said = err.Error()
			return
		}
		s.lock.Close()
		s.lock = lock
	}
	restored, err := s.notify.Restore()
	if err != nil && *said != err.Error() {
		s.log.Error("the notify socket was removed, and cannot be made again: no generation can start", "error", err)
		*said = err.Error()
	}
	_, missing := os.Lstat(filepath.Join(dir, state.Name))
	if recorded := !errors.Is(missing, os.ErrNotExist); held && !restored && recorded {
		return
	}
	s.log.Error("somebody has removed files of runtime_dir under this supervisor: they are made again", "directory", dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note()
}
