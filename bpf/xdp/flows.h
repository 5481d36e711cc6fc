/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The connection table: what keeps a flow that carries no id together. One table
 * for all CPUs, in sets of eight flows. A flow has one set, where it is found by a
 * tag; the eighth newest of a set is forgotten for the next one. No lock and no
 * call: decision 039. */

#include "parse.h"

#define WAYS 8
#define SETS (1 << SETS_LOG)
#define SETS_LOG 18

/* Two lines of memory that are fetched together: what is looked for, what is found. */
struct flow {
	__u32 owner; /* place of the real, and above it the low bits of its epoch */
	__u32 seen;  /* ticks, within a second */
};

struct flow_set {
	__u64 tags[WAYS]; /* 0: free */
	struct flow flows[WAYS];
};

/* One more than there are sets: its first tag is the seed. It can be mapped, so
 * that its elements begin where lines of memory do. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SETS + 1);
	__type(key, __u32);
	__type(value, struct flow_set);
} flows SEC(".maps");

#define BEING_WRITTEN 1

#define REAL_BITS 12 /* of an owner: MAX_REALS */

/* Time in ticks of 17 ms, which come again after two years. */
#define TICK_SHIFT 24
#define TICKS_PER_SECOND 60

/* Secret and odd: nobody can say which flows share a set. */
const volatile __u64 flow_seed = 1;
const volatile __u32 udp_idle = 3576; /* ticks of silence that end a flow of datagrams */

/* When something was learned last: how old flows are for each other, without a
 * clock for each packet. */
__u32 tick = 0;

/* How fast a CPU's packets may fill the table: a flood of new flows must not make
 * it forget those that last. */
struct guard {
	__u32 since; /* ticks */
	__u32 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guard);
} guards SEC(".maps");

static __always_inline __u32 now(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

/* Of IPv4 a flow's hash is its key once more, in another order: no two flows of a
 * VIP have the same. Of IPv6, and of different VIPs, two of 2^64 have. */
static __always_inline __u64 flow_tag(__u64 hash, const struct vip *vip)
{
	return hash ^ vip->serial * 0x9e3779b97f4a7c15ULL;
}

static __always_inline struct flow_set *set_of(__u64 tag)
{
	__u32 at = tag * flow_seed >> (64 - SETS_LOG);

	return bpf_map_lookup_elem(&flows, &at);
}

static __always_inline __u32 owner(__u32 real, __u32 epoch)
{
	return epoch << REAL_BITS | real;
}

/* A bit for each place of a set whose tag it is, without a branch: which of them it
 * is nobody can foretell, and the verifier would walk eight ways from here. */
static __always_inline __u64 places_of(const struct flow_set *s, __u64 tag)
{
	static const __u8 bit[WAYS] = {0, 1, 2, 4, 7, 3, 6, 5};
	__u64 bits = 0;
	__u32 i;

#pragma unroll
	for (i = 0; i < WAYS; i++) {
		__u64 other = *(volatile __u64 *)&s->tags[i] ^ tag, less = other - 1;

		barrier_var(less);		       /* or the compiler makes a branch of it */
		bits |= (less & ~other) >> 63 << bit[i]; /* 1 where other is 0 */
	}
	return bits;
}

/* The place of the lowest bit: 0x17, shifted by as many as there are below it,
 * begins with other three bits each time (a sequence of de Bruijn's). */
static __always_inline __u32 first(__u64 bits)
{
	return (bits & -bits) * 0x17 >> 5 & (WAYS - 1);
}

/* Finds a flow. Tag and owner are read twice, by turns: another CPU may be giving
 * the place to another flow, and an interrupt may leave it the time to give it back. */
static __always_inline struct flow *recall(__u64 tag, struct flow *copy)
{
	struct flow_set *s = set_of(tag);
	volatile struct flow *f;
	__u64 bits;
	__u32 at;

	if (!s)
		return NULL;
	bits = places_of(s, tag);
	if (!bits)
		return NULL;
	at = first(bits);
	f = &s->flows[at];
	copy->owner = f->owner;
	copy->seen = f->seen;
	if (*(volatile __u64 *)&s->tags[at] != tag || f->owner != copy->owner)
		return NULL;
	return &s->flows[at];
}

/* The place of the flow longest silent; one that is free is the longest. */
static __always_inline __u32 longest_silent(const struct flow_set *s, __u32 time)
{
	__s64 most = 0;
	__u32 i;

#pragma unroll
	for (i = 0; i < WAYS; i++) {
		/* Other CPUs may be a tick ahead. */
		__u32 silent = time + TICKS_PER_SECOND - *(volatile __u32 *)&s->flows[i].seen;
		__s64 less = most - ((__s64)silent << 3 | i);

		barrier_var(less);
		most -= less & less >> 63;
	}
	return most & (WAYS - 1);
}

/* Enters a flow in its own place, a free one, or that of the flow longest silent.
 * False where another CPU is doing so there. */
static __always_inline bool remember(__u64 tag, struct flow f)
{
	struct flow_set *s = set_of(tag);
	__u64 bits, old;
	__u32 at;

	if (!s)
		return false;
	bits = places_of(s, tag);
	at = bits ? first(bits) : longest_silent(s, f.seen);
	old = *(volatile __u64 *)&s->tags[at];
	if (old == BEING_WRITTEN) { /* by another CPU, or a process that was killed */
		at = (at + 1) % WAYS;
		old = *(volatile __u64 *)&s->tags[at];
	}
	if (old == BEING_WRITTEN || __sync_val_compare_and_swap(&s->tags[at], old, BEING_WRITTEN) != old)
		return false;
	s->flows[at] = f;
	__sync_lock_test_and_set(&s->tags[at], tag);
	return true;
}
