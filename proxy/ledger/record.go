package ledger

import (
	"encoding/binary"
	"strings"
	"sync/atomic"
	"time"
)

// Flags say what is special about a request, and so why its span was kept.
type Flags uint16

// The flags.
const (
	Sampled   Flags = 1 << iota // the caller's trace flag 01: the span's ID has gone upstream
	Erred                       // its class is bad
	Slow                        // it took longer than the threshold in force
	Probing                     // it is the supervisor's
	Anomalous                   // something happened to its flow: the deadline of a drain, a panic
	Chance                      // of one in a hundred, see [Drawn]
	Secure                      // it came by TLS
)

// Keep are the flags for each of which a span is kept.
const Keep = Sampled | Erred | Slow | Probing | Anomalous | Chance

// Record is one request or stream that has ended. Without the text, and the
// parts so marked, it is what the ring of requests has; with them it is a kept
// span.
type Record struct {
	Key
	TraceID [16]byte // never zero
	SpanID  [8]byte  // zero where no span was kept
	// ParentID is the span that the caller's traceparent names; zero: the span is
	// the first of its trace. Kept only.
	ParentID [8]byte
	// Start is on CLOCK_MONOTONIC, which all processes of the host share.
	Start    time.Duration
	Duration time.Duration
	// Head is how long it took until the head of the response, 0 if none came. Kept only.
	Head   time.Duration
	Status int // of HTTP; 0 if none was sent
	Flags  Flags
	Flow   uint64 // the flow's number in this generation, from 1
	// Index counts the requests of the flow, from 0. Kept only.
	Index uint32
	// FlowAge is how old the flow was when the request came. Kept only.
	FlowAge time.Duration

	// Kept only, cut to what there is room for.
	Method   string
	Host     string
	Path     string // without the query, which may hold secrets
	Client   string // address and port
	Upstream string // address and port of the endpoint
	Error    string // why the answer was the proxy's own
}

// Counted is the duration that histograms count: of what was upgraded it is the
// time until the head, for how long it lived says nothing about us.
func (r *Record) Counted() time.Duration {
	if r.Protocol == WebSocket {
		return r.Head
	}
	return r.Duration
}

// What a slot has room for, in bytes of text.
const (
	keptFixed = 13 // words
	textBytes = (keptWords - keptFixed) * 8
)

// texts is the text of a record in the order of a slot, each with its limit.
// Together the limits are no more than textBytes, and each fits a byte.
func (r *Record) texts() [6]struct {
	text  *string
	limit int
} {
	return [6]struct {
		text  *string
		limit int
	}{{&r.Method, 16}, {&r.Host, 64}, {&r.Path, 184}, {&r.Client, 56}, {&r.Upstream, 56}, {&r.Error, 32}}
}

// putRequest writes a record for the ring of requests.
func (r *Record) putRequest(slot []atomic.Uint64, done uint64) {
	us := min(uint64(r.Duration/time.Microsecond), 1<<32-1)
	slot[1].Store(binary.BigEndian.Uint64(r.TraceID[:8]))
	slot[2].Store(binary.BigEndian.Uint64(r.TraceID[8:]))
	slot[3].Store(binary.BigEndian.Uint64(r.SpanID[:]))
	slot[4].Store(uint64(r.Start))
	slot[5].Store(us<<32 | uint64(uint16(r.Status))<<16 | uint64(r.Flags))
	slot[6].Store(r.pack())
	slot[7].Store(r.Flow)
	slot[0].Store(done)
}

// request reads what putRequest has written, as far as it can be true.
func (s *shape) request(w []uint64) (r Record, ok bool) {
	if !s.valid(w[6]) {
		return r, false
	}
	binary.BigEndian.PutUint64(r.TraceID[:8], w[1])
	binary.BigEndian.PutUint64(r.TraceID[8:], w[2])
	binary.BigEndian.PutUint64(r.SpanID[:], w[3])
	r.Start = time.Duration(w[4])
	r.Duration = time.Duration(w[5]>>32) * time.Microsecond
	r.Status, r.Flags = int(uint16(w[5]>>16)), Flags(w[5])
	r.Key, r.Flow = unpack(w[6]), w[7]
	return r, r.Start >= 0
}

// putKept writes a record for the ring of kept spans.
func (r *Record) putKept(slot []atomic.Uint64, done uint64) {
	slot[1].Store(binary.BigEndian.Uint64(r.TraceID[:8]))
	slot[2].Store(binary.BigEndian.Uint64(r.TraceID[8:]))
	slot[3].Store(binary.BigEndian.Uint64(r.SpanID[:]))
	slot[4].Store(binary.BigEndian.Uint64(r.ParentID[:]))
	slot[5].Store(uint64(r.Start))
	slot[6].Store(uint64(r.Duration))
	slot[7].Store(uint64(r.Head))
	slot[8].Store(r.pack())
	slot[9].Store(uint64(r.Index)<<32 | uint64(uint16(r.Status))<<16 | uint64(r.Flags))
	slot[10].Store(r.Flow)
	slot[11].Store(uint64(r.FlowAge))
	var text [textBytes]byte
	var lengths uint64
	at := 0
	for i, t := range r.texts() {
		n := copy(text[at:], (*t.text)[:min(len(*t.text), t.limit)])
		lengths |= uint64(n) << (8 * i)
		at += n
	}
	slot[12].Store(lengths)
	for i := 0; i < at; i += 8 {
		slot[keptFixed+i/8].Store(binary.LittleEndian.Uint64(text[i:]))
	}
	slot[0].Store(done)
}

// kept reads what putKept has written, as far as it can be true.
func (s *shape) kept(w []uint64) (r Record, ok bool) {
	if !s.valid(w[8]) {
		return r, false
	}
	binary.BigEndian.PutUint64(r.TraceID[:8], w[1])
	binary.BigEndian.PutUint64(r.TraceID[8:], w[2])
	binary.BigEndian.PutUint64(r.SpanID[:], w[3])
	binary.BigEndian.PutUint64(r.ParentID[:], w[4])
	r.Start, r.Duration, r.Head = time.Duration(w[5]), time.Duration(w[6]), time.Duration(w[7])
	r.Key = unpack(w[8])
	r.Index, r.Status, r.Flags = uint32(w[9]>>32), int(uint16(w[9]>>16)), Flags(w[9])
	r.Flow, r.FlowAge = w[10], time.Duration(w[11])
	var text [textBytes]byte
	for i := range keptWords - keptFixed {
		binary.LittleEndian.PutUint64(text[8*i:], w[keptFixed+i])
	}
	at := 0
	for i, t := range r.texts() {
		n := int(uint8(w[12] >> (8 * i)))
		if n > t.limit || at+n > len(text) {
			return r, false
		}
		// A character cut in two, or whatever else: exporters refuse it.
		*t.text = strings.ToValidUTF8(string(text[at:at+n]), "\uFFFD")
		at += n
	}
	return r, r.Start >= 0 && r.Duration >= 0 && r.Head >= 0 && r.FlowAge >= 0
}
