// Package ledger is the account that a generation keeps of its flows and
// requests, in pages it shares with the supervisor.
//
// The supervisor makes the pages, one memfd for each generation, and reads them
// without asking: a generation that hangs is read like any other, and one that
// was killed leaves its account behind as it was at that instant. A generation
// writes with a [Writer], without allocating, locking or calling anybody. The
// supervisor reads with a [Ledger].
//
// Counters are the truth and only grow; a [Reading] is what they say at one
// moment, and what happened in between is the difference of two. Rings of
// records explain the counters. They are lossy, never wait for their reader, and
// the reader knows how many records it has missed.
//
// All of it is the generation's word. The reader takes no length, offset or
// index from the pages, checks what it does take, and calls a ledger damaged for
// good when a counter has fallen or anything stands where it cannot. Nothing may
// be concluded from a damaged ledger.
//
// docs/ledger.md draws the layout.
package ledger
