// Package keys is the page of secrets that all generations of a node share, so
// that what one has given a client the next still understands.
//
// The supervisor makes the page and is the only one who can ever write to it:
// the memfd is sealed against every other writable mapping. Generations map it
// to read, and see a rotation without being told.
//
// The layout is version 1, in the byte order of the machine, for the page never
// leaves it:
//
//	  0  u32  magic
//	  4  u32  version
//	  8  u64  sequence: odd while a write is under way, and two higher after it
//	 16  u64  number of ticket keys in use
//	 64  8 × {created: i64 seconds since 1970, key: 32 bytes}: newest first
//	512  token key of QUIC, 32 bytes
//	544  stateless reset key of QUIC, 32 bytes
//	576  u64  config that connection IDs are written under; 0: readable, without a key
//	584  its key, 16 bytes
//	600  6 × key, 16 bytes: those that IDs are read by, of the configs 1 to 6
//
// What is added takes bytes that are zero now, where zero means absent. A
// change that an older reader would misread takes another version.
package keys

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/quicid"
)

const (
	magic   = 0x59454b42 // BKEY
	version = 1

	size  = 4096
	seals = unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

	// A write takes less than a microsecond, but its writer may lose its CPU in the
	// middle: who finds one under way soon waits by sleeping, and takes the writer
	// for dead only when nothing has moved for long.
	spins     = 1 << 10
	pause     = 100 * time.Microsecond
	takenDead = 2 * time.Second
)

// Where things are, in words of eight bytes.
const (
	sequenceAt  = 1
	countAt     = 2
	ticketsAt   = 8
	keyWords    = 4
	ticketWords = 1 + keyWords
	quicAt      = 64
	idsAt       = 72
	idReadAt    = 75
	idKeyWords  = 2
)

// QUIC is what generations share so that one understands what another has sent.
// These keys do not change while the page lives.
type QUIC struct {
	// Token makes the tokens that prove a client's address (RFC 9000, section 8.1).
	Token [32]byte
	// Reset makes stateless reset tokens (RFC 9000, section 10.3) for every
	// connection ID of this node. No other node may have it: a packet that goes
	// astray there would end a connection that lives here.
	Reset [32]byte
}

// IDs is how connection IDs are written, and read. The zero value writes readable
// ones, which are read by everybody.
type IDs struct {
	Config quicid.Config
	Key    quicid.Key
	// Read are the keys by which the kernel finds owners, by config less one: those of
	// before, too, as long as a connection can have an ID under them. A key of zeros
	// is none. A page of an earlier supervisor has none at all.
	Read [quicid.Unroutable - 1]quicid.Key
}

// MaxTickets is how many ticket keys are kept. Rotated daily, a ticket is then
// good for the week that TLS allows it to live.
const MaxTickets = 8

// Ticket is a key that session tickets are encrypted with.
type Ticket struct {
	Created time.Time // to the second
	Key     [32]byte
}

// Page is the page as its one writer has it. Its methods may be called by several
// goroutines.
type Page struct {
	fd int

	mu  sync.Mutex
	mem []byte
}

// New makes a page with tickets, newest first; without any, it makes one key.
// What a former page had is passed by whoever replaces it, so that resumption
// survives the writer. Close frees it.
func New(tickets ...Ticket) (*Page, error) {
	var q QUIC
	rand.Read(q.Token[:])
	rand.Read(q.Reset[:])
	return newPage(q, tickets)
}

// After makes a page with all the keys of another, whose writer has gone: for what
// generations with the old page have given out is still to be understood. Of what the
// writer was changing when it died it begins anew.
func After(r *Reader) (p *Page, err error) {
	tickets, _, torn := r.Tickets()
	if torn != nil {
		tickets = nil
	}
	if q, ok := r.QUIC(); ok {
		p, err = newPage(q, tickets)
	} else {
		p, err = New(tickets...)
	}
	if err != nil || torn != nil {
		return p, err
	}
	if ids, _, err := r.IDs(); err == nil {
		p.WriteIDs(ids)
	}
	return p, nil
}

func newPage(q QUIC, tickets []Ticket) (*Page, error) {
	if len(tickets) == 0 {
		tickets = []Ticket{newTicket(time.Now())}
	}
	fd, err := unix.MemfdCreate("baton-keys", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make the keys' memfd: %w", err)
	}
	p := &Page{fd: fd}
	if err := unix.Ftruncate(fd, size); err != nil {
		p.Close()
		return nil, fmt.Errorf("size the keys' memfd: %w", err)
	}
	// Mapped before it is sealed: no later mapping can be written.
	if p.mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		p.Close()
		return nil, fmt.Errorf("map the keys: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		p.Close()
		return nil, fmt.Errorf("seal the keys' memfd: %w", err)
	}
	binary.NativeEndian.PutUint32(p.mem[0:], magic)
	binary.NativeEndian.PutUint32(p.mem[4:], version)
	store(words(p.mem)[quicAt:], q.Token)
	store(words(p.mem)[quicAt+keyWords:], q.Reset)
	p.write(tickets)
	return p, nil
}

// FD is the memfd to pass on. It stays the page's.
func (p *Page) FD() int { return p.fd }

// Rotate puts a new ticket key first and lets go of the oldest beyond
// [MaxTickets]. Tickets of the others stay good.
func (p *Page) Rotate(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(append([]Ticket{newTicket(now)}, tickets(p.mem)...))
}

// Tickets are the ticket keys, newest first.
func (p *Page) Tickets() []Ticket {
	p.mu.Lock()
	defer p.mu.Unlock()
	return tickets(p.mem)
}

// WriteIDs has connection IDs written under another config from now on, or read by
// other keys. The kernel is to have the key that they are written under before.
func (p *Page) WriteIDs(ids IDs) {
	p.mu.Lock()
	defer p.mu.Unlock()
	page := words(p.mem)
	page[sequenceAt].Add(1)
	page[idsAt].Store(uint64(ids.Config))
	storeID(page[idsAt+1:], ids.Key)
	for i, key := range ids.Read {
		storeID(page[idReadAt+i*idKeyWords:], key)
	}
	page[sequenceAt].Add(1)
}

// IDs is how connection IDs are written.
func (p *Page) IDs() IDs {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ids(p.mem)
}

// Close unmaps the page. Those who have mapped it keep it as it is.
func (p *Page) Close() error {
	var err error
	if p.mem != nil {
		err = unix.Munmap(p.mem)
	}
	return errors.Join(err, unix.Close(p.fd))
}

func newTicket(now time.Time) Ticket {
	t := Ticket{Created: now}
	rand.Read(t.Key[:])
	return t
}

// write needs p.mu, but for a page that nobody else has yet.
func (p *Page) write(tickets []Ticket) {
	tickets = tickets[:min(len(tickets), MaxTickets)]
	page := words(p.mem)
	page[sequenceAt].Add(1)
	for i, t := range tickets {
		at := page[ticketsAt+i*ticketWords:]
		at[0].Store(uint64(t.Created.Unix()))
		store(at[1:], t.Key)
	}
	page[countAt].Store(uint64(len(tickets)))
	page[sequenceAt].Add(1)
}

// Reader is the page as everybody else has it. Its methods may be called by
// several goroutines.
type Reader struct{ mem []byte }

// Open maps the page behind a memfd, which may be closed then. It refuses
// anything but a page of a version that it knows, sealed.
func Open(fd int) (*Reader, error) {
	// Without the seals a shorter file would kill the reader by SIGBUS, and a
	// neighbour could choose the keys.
	if have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || have&seals != seals {
		return nil, fmt.Errorf("open keys: descriptor %d is no sealed memfd", fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size < size {
		return nil, fmt.Errorf("open keys: %d bytes, want %d", st.Size, size)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	r := &Reader{mem}
	if m, v := binary.NativeEndian.Uint32(mem), binary.NativeEndian.Uint32(mem[4:]); m != magic || v != version {
		r.Close()
		return nil, fmt.Errorf("open keys: magic %#x, version %d: this build reads version %d", m, v, version)
	}
	return r, nil
}

// Sequence changes with every rotation. Asking costs one load from memory.
func (r *Reader) Sequence() uint64 { return words(r.mem)[sequenceAt].Load() }

// Tickets are the ticket keys, newest first, all of one moment, and the
// sequence of that moment.
func (r *Reader) Tickets() (read []Ticket, sequence uint64, err error) {
	sequence, err = r.atOnce(func() { read = tickets(r.mem) })
	return read, sequence, err
}

// IDs is how connection IDs are to be written, and the sequence of that moment.
func (r *Reader) IDs() (read IDs, sequence uint64, err error) {
	sequence, err = r.atOnce(func() { read = ids(r.mem) })
	return read, sequence, err
}

// atOnce repeats a reading until nothing was written meanwhile.
func (r *Reader) atOnce(read func()) (uint64, error) {
	sequence := &words(r.mem)[sequenceAt]
	var stuck uint64 // the sequence of a write under way
	var since time.Time
	for trial := 0; ; trial++ {
		before := sequence.Load()
		if before%2 == 0 {
			read()
			if sequence.Load() == before {
				return before, nil
			}
		}
		switch {
		case trial < spins:
			runtime.Gosched()
			continue
		case before%2 == 0 || before != stuck:
			stuck, since = before, time.Now()
		case time.Since(since) > takenDead:
			return 0, errors.New("read keys: their writer died in the middle of a rotation")
		}
		time.Sleep(pause)
	}
}

// QUIC are the keys of QUIC. ok is false for the page of a supervisor that knows
// none yet.
func (r *Reader) QUIC() (q QUIC, ok bool) {
	page := words(r.mem)
	q = QUIC{Token: load(page[quicAt:]), Reset: load(page[quicAt+keyWords:])}
	return q, q.Token != [32]byte{} && q.Reset != [32]byte{}
}

// Close unmaps the page.
func (r *Reader) Close() error { return unix.Munmap(r.mem) }

func tickets(mem []byte) []Ticket {
	page := words(mem)
	read := make([]Ticket, min(page[countAt].Load(), MaxTickets))
	for i := range read {
		at := page[ticketsAt+i*ticketWords:]
		read[i].Created = time.Unix(int64(at[0].Load()), 0)
		read[i].Key = load(at[1:])
	}
	return read
}

func ids(mem []byte) (read IDs) {
	page := words(mem)
	read.Config, read.Key = quicid.Config(page[idsAt].Load()), loadID(page[idsAt+1:])
	for i := range read.Read {
		read.Read[i] = loadID(page[idReadAt+i*idKeyWords:])
	}
	return read
}

func storeID(at []atomic.Uint64, key quicid.Key) {
	at[0].Store(binary.NativeEndian.Uint64(key[:8]))
	at[1].Store(binary.NativeEndian.Uint64(key[8:]))
}

func loadID(at []atomic.Uint64) (key quicid.Key) {
	binary.NativeEndian.PutUint64(key[:8], at[0].Load())
	binary.NativeEndian.PutUint64(key[8:], at[1].Load())
	return key
}

func store(at []atomic.Uint64, key [32]byte) {
	for i := range keyWords {
		at[i].Store(binary.NativeEndian.Uint64(key[8*i:]))
	}
}

func load(at []atomic.Uint64) (key [32]byte) {
	for i := range keyWords {
		binary.NativeEndian.PutUint64(key[8*i:], at[i].Load())
	}
	return key
}

// words is the page as atomics: a sequence lock holds only if what it guards is
// neither read nor written out of order.
func words(mem []byte) []atomic.Uint64 {
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
}
