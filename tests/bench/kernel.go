package main

import (
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
)

// Kernel is what the kernel's part of a shift takes.
type Kernel struct {
	Store Figure `json:"store_ns"` // the store that moves new flows
	Fence Figure `json:"fence_ms"` // until no packet is steered by what was there before
}

func measureKernel() (k Kernel, err error) {
	node, err := reuseport.Open("")
	if err != nil {
		return k, err
	}
	defer node.Close()
	const stores = 100_000
	for range 50 {
		began := time.Now()
		for range stores {
			node.SetShift(reuseport.All, reuseport.Shift{Current: 1, Other: 2, Salt: 1})
		}
		k.Store.add(float64(time.Since(began).Nanoseconds()) / stores)
	}
	for range 50 {
		began := time.Now()
		if err := node.Fence(); err != nil {
			return k, err
		}
		k.Fence.add(milliseconds(time.Since(began)))
	}
	return k, nil
}
