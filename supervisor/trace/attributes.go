package trace

import "go.opentelemetry.io/otel/attribute"

// What the semantic conventions have no name for. docs/tracing.md explains each,
// and a test holds the two together.
const (
	ReleaseID      = attribute.Key("baton.release.id")
	ReleaseCause   = attribute.Key("baton.release.cause")
	ReleaseOutcome = attribute.Key("baton.release.outcome")
	ReleaseRamp    = attribute.Key("baton.release.ramp")
	Interrupted    = attribute.Key("baton.release.interrupted")
	Verdict        = attribute.Key("baton.verdict")
	Harmed         = attribute.Key("baton.verdict.harmed")
	Gate           = attribute.Key("baton.gate")
	GateState      = attribute.Key("baton.gate.state")
	Evidence       = attribute.Key("baton.evidence")

	Generation     = attribute.Key("baton.generation")
	GenerationFrom = attribute.Key("baton.generation.from")
	GenerationTo   = attribute.Key("baton.generation.to")
	Slot           = attribute.Key("baton.slot")
	ServerID       = attribute.Key("baton.server_id")
	ConfigPath     = attribute.Key("baton.config")
	Listener       = attribute.Key("baton.listener")

	Arm         = attribute.Key("baton.arm")
	Route       = attribute.Key("baton.route")
	Upstream    = attribute.Key("baton.upstream")
	Kept        = attribute.Key("baton.kept")
	Flow        = attribute.Key("baton.flow.id")
	FlowRequest = attribute.Key("baton.flow.request_index")
	FlowAge     = attribute.Key("baton.flow.age_ms")

	RampShare      = attribute.Key("baton.ramp.share")
	QueuedHalfOpen = attribute.Key("baton.queued.half_open")
	QueuedToAccept = attribute.Key("baton.queued.to_accept")

	DrainTimeout      = attribute.Key("baton.drain.timeout_ms")
	DrainCut          = attribute.Key("baton.drain.cut")
	DrainIdleClosed   = attribute.Key("baton.drain.idle_closed")
	DrainHalfOpenLeft = attribute.Key("baton.drain.half_open_left")
	Exit              = attribute.Key("baton.exit")
	ExitUndeclared    = attribute.Key("baton.exit.undeclared")
	ExitInFlight      = attribute.Key("baton.exit.in_flight")
)

// The events on spans.
const (
	EventReady      = "baton.ready"
	EventRampStep   = "baton.ramp.step"
	EventShifted    = "baton.shifted"
	EventShiftBack  = "baton.shifted_back"
	EventGate       = "baton.gate"
	EventDecision   = "baton.decision"
	EventQueueEmpty = "baton.queues_empty"
	EventToldToStop = "baton.told_to_stop"
	EventLastCall   = "baton.last_call"
	EventDeadline   = "baton.deadline"
	EventResumed    = "baton.resumed"
	EventHead       = "baton.response_head"
)
