package main

import (
	"os"
	"runtime"
)

// reserve is what the heap of a generation is taken to hold beside what is in it, in
// bytes (docs/decisions/046).
const reserve = 16 << 20

// spareCollections has the garbage collector run less often while little is alive,
// until the caller says that it is done. It leaves an operator's GOGC alone.
//
// The collector's next run follows from what is alive, and of a proxy that is next
// to nothing: it ran at Go's least of 4 MiB. What is
// reserved is alive and never touched, so it takes address space and no memory; what
// it costs is the garbage that may now lie about, at most as much again.
func spareCollections() (done func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	untouched := make([]byte, reserve)
	return func() { runtime.KeepAlive(untouched) }
}
