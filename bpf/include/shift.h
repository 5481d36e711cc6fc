/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The shift in force: one u64, so that one store moves every new flow of a node.
 *
 *   63            32 31        16 15     8 7       0
 *  +----------------+------------+--------+---------+
 *  |      salt      |   weight   | other  | current |
 *  +----------------+------------+--------+---------+
 *
 * A new flow goes to `other` with probability weight/65536, else to `current`.
 * The draw depends on the flow's 4-tuple and the salt alone: while a ramp keeps
 * its salt, a flow that drew the candidate at 10 % draws it at 50 % too, so both
 * halves of a handshake answered with a SYN cookie agree. A written shift has a
 * salt that is not zero; the word 0 means "not set". */

static __always_inline __u32 shift_current(__u64 shift) { return shift & 0xff; }
static __always_inline __u32 shift_other(__u64 shift) { return (shift >> 8) & 0xff; }
static __always_inline __u32 shift_weight(__u64 shift) { return (shift >> 16) & 0xffff; }
static __always_inline __u32 shift_salt(__u64 shift) { return shift >> 32; }

/* The finalizer of MurmurHash3 (public domain): every input bit reaches every
 * output bit. The kernel's hash is keyed but not salted by release; without the
 * mixing the same clients would be the canaries of every release. */
static __always_inline __u32 shift_draw(__u32 hash, __u32 salt)
{
	__u32 h = hash ^ salt;

	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	h ^= h >> 16;
	return h;
}
