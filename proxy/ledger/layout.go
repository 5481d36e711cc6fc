package ledger

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// numSlots is how many slots a connection ID can name.
const numSlots = 256

const (
	magic = 0x52474c4e4f544142 // BATONLGR

	// Version is the layout that this package reads and writes. What is added
	// takes words that are zero now, where zero means absent; a change that an
	// older reader would misread takes another version.
	Version = 1
)

// Sizes, in words of eight bytes unless they say otherwise.
const (
	pageWords = 512 // 4 KiB

	maxListeners = OtherListener
	maxRoutes    = OtherRoute
	maxNameBytes = 1 << 24 // of all names together
	maxShards    = 16

	numSeries    = 1024              // combinations of a Key that are told apart
	routeSeries  = numSeries * 3 / 4 // from so many on routes are no longer told apart
	listenSeries = numSeries * 7 / 8 // and from so many on listeners

	flowWords     = 8   // a cache line, so that no two shards share one
	inFlightSlots = 512 // a shard

	recordWords = 8 // a cache line
	recordSlots = 1024
	keptWords   = 64
	keptSlots   = 4096
	ringHead    = 8 // the cursor, on a cache line of its own

	cellWords = pageWords // one series in one shard
)

// Words of the header, which is the first page.
const (
	hMagic      = 0
	hVersion    = 1
	hSize       = 2 // of the whole, in bytes
	hGeneration = 3
	hServerID   = 4
	hShards     = 5
	hListeners  = 6
	hRoutes     = 7
	hNameBytes  = 8
	hWallOffset = 9 // ns to add to CLOCK_MONOTONIC for the time of day, when the ledger was made

	// Written by the supervisor while the generation runs, each on a line of its own with its like.
	hPhase = 16 // see [Ledger.SetPhase]
	hSlow  = 17 // ns; see [Ledger.SetSlow]

	// Written by the generation.
	hWriter    = 24 // version of the layout it writes; 0: nobody has begun
	hHeartbeat = 25 // CLOCK_MONOTONIC, ns
	hCut       = 26 // flows and streams that a deadline ended in the middle of something
	hUsed      = 32 // series in use
	hNextFlow  = 40 // the last flow's number
	hStrays    = 64 // 256 words, by slot; see [Writer.Stray]
)

// Words of the flows of one listener in one shard.
const (
	fAccepted  = 0
	fClosed    = 1
	fReset     = 2 // of the closed: ended by a reset, theirs or ours
	fFailed    = 3 // flows with at least one request that failed
	fStarted   = 4 // requests
	fUntracked = 5 // requests for whose start no slot was free
)

// Words of a cell.
const (
	cCount   = 0
	cSum     = 1  // of durations, ns
	cBuckets = 32 // up to the end of the page
)

// shape is what a ledger is for. All offsets follow from it.
type shape struct {
	generation uint64
	serverID   uint32
	shards     int
	listeners  []string
	routes     []string
}

// layout is where things are, in words.
type layout struct {
	names, keys, flows, inFlight, records, kept, cells, size int
}

func (s *shape) check() error {
	switch {
	case s.shards < 1 || s.shards > maxShards:
		return fmt.Errorf("%d shards", s.shards)
	case len(s.listeners) > maxListeners:
		return fmt.Errorf("%d listeners; at most %d", len(s.listeners), maxListeners)
	case len(s.routes) > maxRoutes:
		return fmt.Errorf("%d routes; at most %d", len(s.routes), maxRoutes)
	case len(s.text()) > maxNameBytes:
		return errors.New("the names are too long")
	}
	return nil
}

func (s *shape) layout() layout {
	var l layout
	at := pageWords
	take := func(words int) int {
		from := at
		at += (words + pageWords - 1) / pageWords * pageWords
		return from
	}
	l.names = take((len(s.text()) + 7) / 8)
	l.keys = take(numSeries)
	l.flows = take(s.shards * len(s.listeners) * flowWords)
	l.inFlight = take(s.shards * inFlightSlots)
	l.records = take(s.shards * (ringHead + recordSlots*recordWords))
	l.kept = take(ringHead + keptSlots*keptWords)
	l.cells = take(s.shards * numSeries * cellWords)
	l.size = at
	return l
}

func (l *layout) flow(s *shape, shard, listener int) int {
	return l.flows + (shard*len(s.listeners)+listener)*flowWords
}

func (l *layout) cell(shard, series int) int {
	return l.cells + (shard*numSeries+series)*cellWords
}

func (l *layout) recordRing(shard int) ring {
	return ring{l.records + shard*(ringHead+recordSlots*recordWords), recordSlots, recordWords}
}

func (l *layout) keptRing() ring { return ring{l.kept, keptSlots, keptWords} }

// words is memory as atomics: another process reads and writes it, too.
func words(mem []byte) []atomic.Uint64 {
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
}
