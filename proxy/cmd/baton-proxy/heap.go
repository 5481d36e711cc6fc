package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// reserve is what the heap of a generation is taken to hold beside what is in it, in
// bytes (docs/decisions/046).
const reserve = 16 << 20

// first is where the collector runs when next to nothing is alive, in bytes (GOGC=100).
const first = 4 << 20

// spareCollections has the garbage collector run less often while little is alive,
// until the caller says that it is done. It leaves an operator's GOGC alone.
//
// The collector's next run follows from what is alive, and of a proxy that is next
// to nothing: it ran at Go's least of 4 MiB. What is
// reserved is alive and never touched, so it takes address space and no memory; what
// it costs is the garbage that may now lie about, at most as much again. That is the
// first thing that a generation under load fills with what it never had before, page
// by page; so there is room for it in huge pages, which the first collection frees.
func spareCollections() (done func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	// Nothing is collected in between, or what is reserved would be put in the room
	// and zeroed.
	percent := debug.SetGCPercent(-1)
	room := make([]byte, reserve+first)
	unix.Madvise(room, unix.MADV_HUGEPAGE) // a kernel without huge pages has small ones
	untouched := make([]byte, reserve)
	debug.SetGCPercent(percent)
	return func() { runtime.KeepAlive(untouched) }
}
