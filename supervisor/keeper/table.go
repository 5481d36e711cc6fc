package keeper

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// table is what a keeper holds: open files under names. An open file that has several
// names is held once, as a [store] does: generations may share a listening socket.
type table struct {
	names map[string]*file
	files map[identity][]*file
	next  uint64   // number of the next file
	gone  []uint64 // numbers that the store has and should not
}

// file is an open file that is held.
type file struct {
	identity
	fd     int
	number uint64 // its name in the store
	names  int    // here
	sent   bool   // the store may have it
	stored bool   // and it does
}

// identity is an inode: open files of one may be the same.
type identity struct{ dev, ino uint64 }

func newTable() *table {
	return &table{names: map[string]*file{}, files: map[identity][]*file{}, next: 1}
}

// add takes a descriptor that has no name yet, under this number.
func (t *table) add(fd int, number uint64) *file {
	f := &file{identity: identityOf(fd), fd: fd, number: number}
	t.files[f.identity] = append(t.files[f.identity], f)
	t.next = max(t.next, number+1)
	return f
}

// put takes a descriptor, in place of what has its name.
func (t *table) put(name string, fd int) {
	files := t.files[identityOf(fd)]
	var f *file
	if i := slices.IndexFunc(files, func(f *file) bool { return same(f.fd, fd) }); i >= 0 {
		f = files[i]
		unix.Close(fd)
	} else {
		f = t.add(fd, t.next)
	}
	f.names++
	t.drop(name) // afterwards: it may be the same
	t.names[name] = f
}

// drop closes what has a name, unless it has another.
func (t *table) drop(name string) {
	f := t.names[name]
	if f == nil {
		return
	}
	delete(t.names, name)
	if f.names--; f.names == 0 {
		t.remove(f)
	}
}

func (t *table) remove(f *file) {
	unix.Close(f.fd)
	t.files[f.identity] = slices.DeleteFunc(t.files[f.identity], func(other *file) bool { return other == f })
	if len(t.files[f.identity]) == 0 {
		delete(t.files, f.identity)
	}
	if f.sent {
		t.gone = append(t.gone, f.number)
	}
}

func identityOf(fd int) identity {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return identity{}
	}
	return identity{st.Dev, st.Ino}
}

// same reports whether two descriptors are of one open file (kcmp(2)).
func same(a, b int) bool {
	const kcmpFile = 0 // KCMP_FILE, include/uapi/linux/kcmp.h
	self := uintptr(os.Getpid())
	order, _, err := unix.Syscall6(unix.SYS_KCMP, self, self, kcmpFile, uintptr(a), uintptr(b), 0)
	return err == 0 && order == 0
}
