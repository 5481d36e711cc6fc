package iter

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/baton-mesh/baton/tests/need"
)

// What a process has pinned is gone on with by the next one, which is not told of
// sockets that the first had asked about when it died.
func TestIteratorIsLeft(t *testing.T) {
	need.BPFFS(t)
	dir, err := os.MkdirTemp("/sys/fs/bpf", "iter-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil { // not empty: something is pinned still
			t.Error(err)
		}
	})
	id := func(q *Queues) any {
		t.Helper()
		info, err := q.objs.Queues.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		return id
	}
	first, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, asked := listen(t)
	_, other := listen(t)
	if err := first.want([]uint64{asked, other}); err != nil { // and never reads
		t.Fatal(err)
	}
	was := id(first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	next, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id(next) != was {
		t.Error("the next process has loaded the iterator again")
	}
	var cookie uint64
	var mark uint8
	if all := next.objs.Wanted.Iterate(); all.Next(&cookie, &mark) {
		t.Errorf("the next process asks about %d, too", cookie)
	}
	if found, err := next.Read([]uint64{asked}); err != nil || len(found) != 1 || found[asked] == (Queue{}) {
		t.Errorf("%v, %v", found, err)
	}
	next.Close()

	// Where only a part is left, all is made anew.
	if err := os.Remove(filepath.Join(dir, layout, "wanted")); err != nil {
		t.Fatal(err)
	}
	last, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if id(last) == was {
		t.Error("the program of a map that is gone is in use")
	}
	if found, err := last.Read([]uint64{other}); err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
	if err := last.Unpin(); err != nil {
		t.Error(err)
	}
}
