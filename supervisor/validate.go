package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// checkTimeout bounds a generation's check of its own configuration.
const checkTimeout = 30 * time.Second

// validate finds every mistake that can be found before anything is started.
func (s *Supervisor) validate(ctx context.Context, r *release) error {
	if r.recipe == nil {
		what, err := s.prepare(r.request)
		if err != nil {
			return err
		}
		r.recipe = what
	}
	if err := s.intact(r); err != nil {
		return err
	}
	for _, w := range r.recipe.config.Warnings(time.Now()) {
		s.log.Warn(w)
		r.result.Evidence = append(r.result.Evidence, "warning: "+w)
	}
	if err := reachable(s.notify.Path(), r.recipe.account); err != nil {
		return err
	}
	if err := s.sameNode(r.recipe.config); err != nil {
		return err
	}
	if err := s.steering.Refuse(steer.Asked{Config: r.recipe.config, Some: r.only != nil, Ramp: r.ramp()}); err != nil {
		return err
	}
	if err := s.splitable(r); err != nil {
		return err
	}
	if err := s.refuseStrangers(r.recipe.config); err != nil {
		return err
	}
	return s.checkByItself(ctx, r.recipe)
}

// intact refuses to run another binary than the one that was opened. Only where nobody
// serves otherwise is anything better than nothing.
func (s *Supervisor) intact(r *release) error {
	err := r.recipe.binary.Intact()
	if err != nil && r.cause == "crash" {
		s.log.Error("the crashed generation is started again with another binary than it ran", "reason", err)
		return nil
	}
	return err
}

// prepare loads the configuration and opens the binary, once.
func (s *Supervisor) prepare(req Request) (*recipe, error) {
	c, path := s.config, req.ConfigPath
	if path == "" {
		path = s.opts.ConfigPath
	}
	if path != "" {
		loaded, err := config.Load(path)
		if err != nil {
			return nil, err
		}
		if loaded.ConnectionIDs != s.config.ConnectionIDs {
			return nil, errors.New("connection_ids would change: that needs a restart of the supervisor, which baton run --replace is; what key_file holds may change at any time")
		}
		c = loaded
	} else {
		path = "(built in)"
	}
	return s.cook(c, path, req)
}

// cook makes a recipe of a configuration: the account looked up, the binary opened.
func (s *Supervisor) cook(c *config.Config, path string, req Request) (*recipe, error) {
	if len(c.Listeners) == 0 {
		return nil, errors.New("listeners: there is none: baton balance runs a balancer alone")
	}
	account, err := s.account(c.Proxy.User)
	if err != nil {
		return nil, err
	}
	name := c.Proxy.Command[0]
	if req.Binary != "" {
		name = req.Binary
	}
	binary, err := spawn.Open(name)
	if err != nil {
		return nil, fmt.Errorf("binary: %w", err)
	}
	return &recipe{config: c, configPath: path, addresses: steer.AddressesOf(c), binary: binary, account: account}, nil
}

// reachable reports the directory that keeps an account from the notify socket: its
// generation would be up and never heard. One that is the account's own is refused too:
// a generation could put another state file or admin socket in the place of ours.
func reachable(path string, account spawn.Account) error {
	for dir := filepath.Dir(path); account.UID != 0; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		pass := fs.FileMode(0o001)
		st := info.Sys().(*syscall.Stat_t)
		own := int(st.Uid) == account.UID
		if own && dir == filepath.Dir(path) && account.UID != spawn.Own().UID {
			return fmt.Errorf("runtime_dir: %s belongs to user %d of proxy.user, who could replace what is in it: chown %d %s, or move runtime_dir", dir, account.UID, spawn.Own().UID, dir)
		}
		if own {
			pass = 0o100
		} else if int(st.Gid) == account.GID {
			pass = 0o010
		}
		if info.Mode()&pass == 0 {
			return fmt.Errorf("runtime_dir: user %d of proxy.user may not pass through %s to the notify socket: chmod o+x %s, or move runtime_dir", account.UID, dir, dir)
		}
		if dir == "/" {
			break
		}
	}
	return nil
}

// sameNode refuses what the supervisor has begun with and keeps.
func (s *Supervisor) sameNode(c *config.Config) error {
	problems := s.steering.Conflicts(c)
	if c.RuntimeDir != s.config.RuntimeDir || c.Node != s.config.Node || c.Admin != s.config.Admin {
		problems = append(problems, "node, runtime_dir or admin would change: that needs a restart of the supervisor")
	}
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}

// checkByItself lets the binary check the configuration, as the user it will
// run as. Servers that do not speak Baton's part of the contract have no such
// command.
func (s *Supervisor) checkByItself(ctx context.Context, what *recipe) error {
	if !what.config.Proxy.Baton {
		return nil
	}
	fd, err := configFD(what.config)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	said, err := spawn.Run(ctx, spawn.Options{
		Binary: what.binary, Args: []string{"check"}, Account: what.account,
		Env:   append(inheritedEnv(), fmt.Sprintf("%s=%d", contract.EnvConfigFD, contract.FirstFD)),
		Files: []int{fd},
	})
	if err == nil {
		return nil
	}
	if said = strings.TrimSpace(said); said != "" {
		return fmt.Errorf("%s check: %w: %s", what.binary.Path, err, said)
	}
	return fmt.Errorf("%s check: %w", what.binary.Path, err)
}

// configFD writes the resolved configuration to a sealed memfd: what the
// generation reads is what was checked, and nobody can change it.
func configFD(c *config.Config) (int, error) {
	data, err := c.HandOver()
	if err != nil {
		return -1, fmt.Errorf("write the configuration: %w", err)
	}
	fd, err := unix.MemfdCreate("baton-config", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("make a memfd: %w", err)
	}
	for len(data) > 0 && err == nil {
		var n int
		n, err = unix.Write(fd, data)
		data = data[max(n, 0):]
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		// The reader starts where the writer's offset stands.
		_, err = unix.Seek(fd, 0, 0)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("fill the configuration's memfd: %w", err)
	}
	return fd, nil
}
