// Package judge finds the verdict on a candidate from what was read while it was watched:
// readings go in, findings come out. It asks nobody and waits for nothing, so that a
// verdict can be had again from the same readings.
//
// A gate is one fact that must be as it has to be. None of them weighs or estimates: what
// they say is so or is not. What would need a comparison of rates has no place here.
package judge
