// Package demo replaces a proxy under load and counts what its clients lost.
//
// It holds an [Origin] to answer through the proxy, a [Load] of clients of
// several kinds, a [Node] that runs `baton run` as a child process, and the
// scenario of `baton demo` that puts the three together.
//
// The clients are stricter than real ones, because a retry would hide what the
// demo is there to show: no client sends anything twice, every body is compared
// with what the origin must have sent, and a request that got no whole and right
// answer has failed, whatever the reason.
package demo
