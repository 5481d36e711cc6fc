package ledger

// Protocol is what a request or stream was spoken in.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota
	HTTP2
	HTTP3
	WebSocket // after its handshake; other upgrades as well
	TCP
	UDP
	numProtocols
)

func (p Protocol) String() string {
	return nameOf(p, []string{"http1", "http2", "http3", "websocket", "tcp", "udp"})
}

// Arm tells flows apart that a comparison of generations must not mix.
type Arm uint8

// The arms.
const (
	New   Arm = iota // the flow was accepted in the phase in force
	Old              // in an earlier one
	Probe            // the supervisor's own, or of who says so
	numArms
)

func (a Arm) String() string { return nameOf(a, []string{"new", "old", "probe"}) }

// Class is how a request ended.
type Class uint8

// The classes. Requests with a status have its first digit; Aborted ones had no
// whole response. Streams have no status: they ended, or nobody could be reached.
const (
	Aborted Class = iota
	Status1xx
	Status2xx
	Status3xx
	Status4xx
	Status5xx
	Ended
	Failed
	Left // the client, before it had the response
	NumClasses
)

func (c Class) String() string {
	return nameOf(c, []string{"aborted", "1xx", "2xx", "3xx", "4xx", "5xx", "ended", "failed", "left"})
}

// Bad says that the class counts as an error of the generation.
func (c Class) Bad() bool { return c == Aborted || c == Status5xx || c == Failed }

// Key is what requests are counted by.
type Key struct {
	Listener uint16 // index among the ledger's listeners, or OtherListener
	Route    uint16 // index among its routes, NoRoute or OtherRoute
	Protocol Protocol
	Arm      Arm
	Class    Class
}

const (
	// OtherListener stands for listeners beyond those that there was room to tell
	// apart. Their flows are told apart all the same.
	OtherListener = 0xffff
	// NoRoute stands for requests that matched none.
	NoRoute = 0xffff
	// OtherRoute stands for all routes beyond those that there was room to tell apart.
	OtherRoute = 0xfffe
)

// pack makes a word of the key that is not zero.
func (k Key) pack() uint64 {
	return 1<<63 | uint64(k.Listener)<<40 | uint64(k.Route)<<24 |
		uint64(k.Protocol)<<16 | uint64(k.Arm)<<8 | uint64(k.Class)
}

func unpack(w uint64) Key {
	return Key{uint16(w >> 40), uint16(w >> 24), Protocol(w >> 16), Arm(w >> 8), Class(w)}
}

// valid reports whether a word is the key of something that the shape has.
func (s *shape) valid(w uint64) bool {
	k := unpack(w)
	return k.pack() == w && (int(k.Listener) < len(s.listeners) || k.Listener == OtherListener) &&
		(int(k.Route) < len(s.routes) || k.Route == NoRoute || k.Route == OtherRoute) &&
		k.Protocol < numProtocols && k.Arm < numArms && k.Class < NumClasses
}

func nameOf[T ~uint8](v T, names []string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "unknown"
}

// ClassOf is the class of a status of HTTP; 0 is none.
func ClassOf(status int) Class {
	if status < 100 || status > 599 {
		return Aborted
	}
	return Class(status / 100)
}
