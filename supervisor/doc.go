// Package supervisor replaces the proxy on a node without dropping connections.
//
// A release takes one generation through validate → start → probe → shift →
// verify; beside the releases that follow, the generation it replaced goes
// through drain → reap. Up to shift, failure costs nothing: the new process is
// killed and the old one never stopped serving. Shift and verify fail by
// shifting back, one store, for the old one still has not stopped. There is one
// release at a time; one waits, and the latest request wins its place.
//
// What always holds:
//
//   - New flows go to a generation that said it is ready, or, when there is
//     none, to the sink: a listening socket of the supervisor whose queue the
//     next generation inherits.
//   - No listening socket closes before its generation was taken out of the
//     shift and every packet steered by the old shift has arrived.
//   - A generation is told to stop only when the kernel shows that nothing is
//     queued for it, or after the wait that [halfOpenWait] bounds.
//   - What a successor of this process needs is in the state file before it happens.
//
// The stages are validate.go to verify.go, in the order that release.go gives; drain.go
// and reap.go follow. watch.go reads what is counted of generations (package account) while
// a candidate has flows, and the verdict is found by package judge. adopt.go takes over what
// an earlier supervisor left; record.go and keep.go see to it that there is something to
// take: a file (package state) and descriptors (package keeper). How a new flow finds its
// generation is the business of package steer.
package supervisor
