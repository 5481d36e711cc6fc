// Package account reads what is counted of generations: by each in its own ledger
// ([Book]), by the kernel of their flows ([Flows]) and at their listening sockets
// ([Queues]). It reads and sums up; what a count means for a release, others judge.
package account
