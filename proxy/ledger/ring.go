package ledger

import (
	"errors"
	"sync/atomic"
)

// ring is a place for records, in words from the beginning of the ledger. First
// comes the cursor, the number of records ever begun; then the slots, whose first
// word says what is in them: 2n+1 while record n is being written, 2n+2 after it.
type ring struct{ at, slots, words int }

func (r ring) slot(mem []atomic.Uint64, n uint64) []atomic.Uint64 {
	at := r.at + ringHead + int(n%uint64(r.slots))*r.words
	return mem[at : at+r.words : at+r.words]
}

// claim takes the slot of the next record. It is nil if somebody still writes
// there: the record is then given up, never waited with, and its number stays
// missing. The writer fills the words from 1 on, and stores done in word 0.
func (r ring) claim(mem []atomic.Uint64) (slot []atomic.Uint64, done uint64) {
	n := mem[r.at].Add(1) - 1
	slot = r.slot(mem, n)
	seq := slot[0].Load()
	if seq%2 == 1 || seq > 2*n || !slot[0].CompareAndSwap(seq, 2*n+1) {
		return nil, 0
	}
	return slot, 2*n + 2
}

// ringReader reads a ring from where it was last.
type ringReader struct {
	ring
	next   uint64 // record to be read
	waited bool   // for next, which was not finished the last time
	lost   uint64
	buf    []uint64
}

// implausible is more than can happen between two readings.
const implausible = 1 << 40

var errCursor = errors.New("a ring's cursor stands where it cannot")

// read hands each record that is new to take, as its words; word 0 is its number.
// A record that is being written is left for the next time, once. All that had
// gone before they were read are counted as lost.
func (r *ringReader) read(mem []atomic.Uint64, take func(words []uint64)) error {
	end := mem[r.at].Load()
	if end < r.next || end-r.next > implausible {
		return errCursor
	}
	if behind := end - r.next; behind > uint64(r.slots) {
		r.lost += behind - uint64(r.slots)
		r.next, r.waited = end-uint64(r.slots), false
	}
	if r.buf == nil {
		r.buf = make([]uint64, r.words)
	}
	for ; r.next < end; r.next, r.waited = r.next+1, false {
		slot, done := r.slot(mem, r.next), 2*r.next+2
		if seq := slot[0].Load(); seq != done {
			if seq < done && !r.waited {
				r.waited = true
				return nil
			}
			r.lost++
			continue
		}
		for i := 1; i < r.words; i++ {
			r.buf[i] = slot[i].Load()
		}
		if slot[0].Load() != done {
			r.lost++ // overwritten meanwhile
			continue
		}
		r.buf[0] = r.next
		take(r.buf)
	}
	return nil
}
