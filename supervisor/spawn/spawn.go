// Package spawn starts a generation: as its user, without a capability, in its
// cgroup, from a binary that was opened once.
//
// Between the supervisor and the server stands the shim of the folder below.
package spawn

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/spawn/shim"
)

// Binary is an executable that has been opened once. What runs is what was
// opened, whatever the path names by then; whether that file has been written to
// since, [Binary.Intact] says.
type Binary struct {
	Path string
	file *os.File
	was  Stamp
}

// Stamp is what a file has been written at, and how long it is.
type Stamp struct {
	Written time.Time `json:"written"`
	Size    int64     `json:"size"`
}

// Stamp is the file's as it was when it was opened.
func (b *Binary) Stamp() Stamp { return b.was }

// Intact says in words that the file has been written to since it was opened. Nobody
// keeps others from that while no process executes it.
func (b *Binary) Intact() error {
	info, err := b.file.Stat()
	if err != nil {
		return err
	}
	if !info.ModTime().Equal(b.was.Written) || info.Size() != b.was.Size {
		return fmt.Errorf("%s was overwritten in place at %s, after it had been opened: what was to run is gone; put a new binary in the place of an old one by a rename (install, mv), and name the one to run with --binary",
			b.Path, info.ModTime().Format(time.RFC3339))
	}
	return nil
}

// Open finds an executable: a path, or a name that is looked for beside this
// process's own binary and then in PATH.
func Open(name string) (*Binary, error) {
	path := name
	if !strings.ContainsRune(name, '/') {
		found, err := lookUp(name)
		if err != nil {
			return nil, err
		}
		path = found
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = fmt.Errorf("%s is not an executable file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Binary{path, f, Stamp{info.ModTime(), info.Size()}}, nil
}

// From is an executable that was opened by somebody else, who gives fd away, and had
// this stamp then. The zero stamp is one that nobody knows.
func From(path string, fd int, was Stamp) *Binary {
	b := &Binary{path, os.NewFile(uintptr(fd), path), was}
	if info, err := b.file.Stat(); err == nil && was == (Stamp{}) {
		b.was = Stamp{info.ModTime(), info.Size()}
	}
	return b
}

// FD is the opened file's descriptor. It stays the binary's.
func (b *Binary) FD() int {
	fd := -1
	if raw, err := b.file.SyscallConn(); err == nil {
		raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

func lookUp(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside baton nor in PATH", name)
	}
	return path, nil
}

// Close gives the file back. Processes that run it are not touched.
func (b *Binary) Close() error { return b.file.Close() }

// Dup returns a second handle on the same opened file, with a life of its own.
func (b *Binary) Dup() (*Binary, error) {
	fd, err := unix.FcntlInt(b.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the handle of %s: %w", b.Path, err)
	}
	return &Binary{b.Path, os.NewFile(uintptr(fd), b.Path), b.was}, nil
}

// explain says in words why the kernel would not execute the binary.
func (b *Binary) explain(reason string) error {
	if strings.Contains(reason, syscall.ETXTBSY.Error()) {
		return fmt.Errorf("%s: %s: somebody has it open for writing; wait until it is whole", b.Path, reason)
	}
	if !strings.Contains(reason, syscall.ENOEXEC.Error()) {
		return fmt.Errorf("%s: %s", b.Path, reason)
	}
	f, err := elf.NewFile(b.file)
	if err != nil {
		return fmt.Errorf("%s is neither an ELF binary nor a script", b.Path)
	}
	return fmt.Errorf("%s is built for %s, this machine is %s", b.Path,
		strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_")), runtime.GOARCH)
}

// Options say what is started and with what.
type Options struct {
	Binary *Binary
	// Args are the arguments after the program's name.
	Args []string
	// Env is the whole environment but LISTEN_PID, which the shim sets.
	Env     []string
	Account Account
	// Files become descriptors 3, 4, … of the process. They stay the caller's.
	Files []int
	// Stdout and Stderr default to the supervisor's standard error.
	Stdout, Stderr *os.File
	// Cgroup is an open directory of the cgroup2 file system to be born in.
	// Nil means the supervisor's own.
	Cgroup *os.File
	// Record, if not nil, is called when the process exists. The server is executed
	// when it has returned nil: should this process die before, so does the other,
	// and there is no server of which nobody knows.
	Record func(*Process) error
}

// Process is a generation's main process.
type Process struct {
	PID int

	mu    sync.Mutex
	pidFD int // refers to this process even after its number is used again; -1: closed
}

// Attach refers to a process that somebody else has started. It cannot be
// reaped; Ended tells when it is gone.
func Attach(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return &Process{PID: pid, pidFD: fd}, nil
}

// Ended waits for the end of a process, at most for the time given.
func (p *Process) Ended(within time.Duration) bool {
	p.mu.Lock()
	fd := p.pidFD
	p.mu.Unlock()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(within.Milliseconds()))
	return err == nil && n == 1
}

// Duplicate returns a descriptor of what the process has open under this number
// (pidfd_getfd(2)); it is the caller's to close.
func (p *Process) Duplicate(number int) (fd int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidFD < 0 {
		return -1, os.ErrProcessDone
	}
	return unix.PidfdGetfd(p.pidFD, number, 0) // close-on-exec, as all of them
}

// Close gives the handle back. Signal then finds no process.
func (p *Process) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidFD >= 0 {
		unix.Close(p.pidFD)
		p.pidFD = -1
	}
}

// Start returns when the server itself has been executed, or the reason why not.
func Start(o Options) (_ *Process, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r, w := os.NewFile(uintptr(pair[0]), "to the shim"), os.NewFile(uintptr(pair[1]), "of the shim")
	defer r.Close()
	defer w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stdout, stderr := o.Stdout, o.Stderr
	if stdout == nil {
		stdout = os.Stderr
	}
	if stderr == nil {
		stderr = os.Stderr
	}

	files := []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()}
	for _, fd := range o.Files {
		files = append(files, uintptr(fd))
	}
	binary, ours := len(files), len(files)+1
	files = append(files, o.Binary.file.Fd(), w.Fd())

	argv := append([]string{shim.Name, strconv.Itoa(binary), strconv.Itoa(ours),
		strconv.Itoa(o.Account.UID), strconv.Itoa(o.Account.GID), filepath.Base(o.Binary.Path)}, o.Args...)
	p := &Process{pidFD: -1}
	attr := &syscall.ProcAttr{
		Env:   o.Env,
		Files: files,
		Sys: &syscall.SysProcAttr{
			PidFD: &p.pidFD,
			// A Ctrl-C at the supervisor's terminal is for the supervisor.
			Setpgid: true,
		},
	}
	if err := p.fork(argv, attr, o.Cgroup); err != nil {
		return nil, err
	}
	w.Close()
	if o.Record != nil {
		err = o.Record(p)
	}
	if err != nil {
		r.Close() // it ends without a word
		p.Wait()
		p.Close()
		return nil, err
	}
	r.Write([]byte{1}) // a shim that has ended meanwhile shows below
	reason, err := io.ReadAll(r)
	if err == nil && len(reason) == 0 {
		return p, nil
	}
	p.Wait()
	p.Close()
	return nil, o.Binary.explain(string(reason))
}

// Wait blocks until the process has ended and reaps it. Once.
func (p *Process) Wait() (syscall.WaitStatus, error) {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.PID, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return status, err
		}
	}
}

// Signal sends a signal to this very process, never to a successor of its number.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidFD < 0 {
		return os.ErrProcessDone
	}
	err := unix.PidfdSendSignal(p.pidFD, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Run starts a process, waits for its end and returns what it wrote, at most
// 64 KiB of it, with an error unless it exited with status 0. When ctx ends
// first the process is killed.
func Run(ctx context.Context, o Options) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	o.Stdout, o.Stderr = w, w
	p, err := Start(o)
	w.Close()
	if err != nil {
		return "", err
	}
	defer p.Close()
	stop := context.AfterFunc(ctx, func() { p.Signal(syscall.SIGKILL) })
	defer stop()
	var out bytes.Buffer
	io.CopyN(&out, r, 64<<10)
	io.Copy(io.Discard, r)
	status, err := p.Wait()
	if err != nil {
		return "", err
	}
	if ctx.Err() != nil {
		return out.String(), ctx.Err()
	}
	if status.Signaled() {
		return out.String(), fmt.Errorf("killed by %s", status.Signal())
	}
	if status.ExitStatus() != 0 {
		return out.String(), fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return out.String(), nil
}
