package main

import (
	"runtime"
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
