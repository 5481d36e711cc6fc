// Package state is what a supervisor leaves to the next one on disk: a record of its
// generations and of the release under way, and the lock that says who works in a
// runtime directory. It knows the layout of the file and how it is replaced; what a
// record means, and what is to be done about it, the supervisor knows.
package state
