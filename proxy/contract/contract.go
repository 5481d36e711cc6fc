// Package contract names what passes between the supervisor and a generation.
//
// Everything outside the BATON_ names is what systemd asks of a
// socket-activated notify service (sd_listen_fds(3), sd_notify(3)), so a server
// that knows nothing of Baton can be a generation.
package contract

// Socket activation and readiness, as systemd has them.
const (
	EnvListenPID     = "LISTEN_PID"
	EnvListenFDs     = "LISTEN_FDS"
	EnvListenFDNames = "LISTEN_FDNAMES"
	EnvNotifySocket  = "NOTIFY_SOCKET"

	// UDPSuffix tells the sockets of a listener that take datagrams from those
	// that take connections, in LISTEN_FDNAMES.
	UDPSuffix = ".udp"

	// FirstFD is the number of the first passed descriptor.
	FirstFD = 3
)

// Baton's own, set only for generations whose configuration asks for them.
const (
	EnvGenerationID = "BATON_GENERATION_ID" // decimal, counted from 1 for ever
	EnvSlot         = "BATON_SLOT"          // decimal, 0 to 255
	EnvServerID     = "BATON_SERVER_ID"     // decimal u32, never 0
	EnvConfigFD     = "BATON_CONFIG_FD"     // sealed memfd with the resolved configuration, see config.Receive
	EnvKeysFD       = "BATON_KEYS_FD"       // memfd with the keys that generations share, as package keys lays them out
	EnvLedgerFD     = "BATON_LEDGER_FD"     // memfd for the generation's account, as package ledger lays it out
)

// What a draining generation of ours reports before it exits, as sd_notify
// assignments (a name that begins with X_ is ours to use, sd_notify(3)).
const (
	// NotifyCut is the number of flows the deadline cut in the middle of something.
	NotifyCut = "X_BATON_CUT"
	// NotifyIdleClosed is the number of idle keep-alive connections closed at the deadline.
	NotifyIdleClosed = "X_BATON_IDLE_CLOSED"
)
