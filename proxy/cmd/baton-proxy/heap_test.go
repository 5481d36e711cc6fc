package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestSpareCollections(t *testing.T) {
	next := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NextGC
	}
	t.Setenv("GOGC", "100")
	done := spareCollections()
	if n := next(); n >= 2*reserve {
		t.Errorf("although GOGC is set the collector runs at %d bytes", n)
	}
	done()
	t.Setenv("GOGC", "")
	done = spareCollections()
	if n := next(); n < 2*reserve {
		t.Errorf("the collector runs at %d bytes, before %d", n, 2*reserve)
	}
	done()
}

// A generation has room for garbage in huge pages, and has touched neither that nor
// what is reserved.
func TestRoomIsOfHugePages(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("this kernel has no huge pages for programs that ask")
	}
	notify, next := manager(t)
	cmd := command("--config", write(t, fmt.Sprintf(configuration, freePort(t), "127.0.0.1:9")))
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	next("READY=1")
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var kB, rss, size, resident int
	for line := range strings.Lines(string(smaps)) {
		fmt.Sscanf(line, "Size: %d kB", &kB)
		fmt.Sscanf(line, "Rss: %d kB", &rss)
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && slices.Contains(strings.Fields(flags), "hg") {
			size, resident = size+kB<<10, resident+rss<<10
		}
	}
	if size < reserve {
		t.Errorf("%d bytes are of huge pages, want %d", size, reserve)
	}
	if resident > reserve/2 {
		t.Errorf("%d of them are in use", resident)
	}
}
