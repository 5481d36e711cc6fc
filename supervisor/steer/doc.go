// Package steer decides which generation a new flow of a listener goes to.
//
// There are two ways, and one interface, [Steering], for both. [BPF] has a program
// in the kernel choose by the shift in force; each generation has sockets of its own,
// in a slot. [Takeover] needs no privilege: all generations accept from one socket,
// and a new flow goes to whoever comes first.
//
// What always holds: a socket is a plain descriptor with its cookie ([Socket]), and
// whoever is given one closes it. A listener of [BPF] that is open has its sink, where
// a flow waits that finds nobody. Nothing here knows of releases: the caller says who
// has which slot, and when.
package steer
