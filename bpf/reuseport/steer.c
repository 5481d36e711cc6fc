// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* sk_reuseport: picks the socket of the generation that gets a new flow.
 *
 * The kernel runs it when a segment finds no connection but a group of listening
 * sockets, and again, with migrating_sk set, when a listening socket closes and
 * what is queued on it needs another home. One instance serves every listener of
 * the node; the address of the socket that the lookup found says which one it is.
 *
 * Every path ends in an explicit choice. A bare SK_PASS would let the kernel hash
 * over all members, draining ones too; SK_DROP would answer the client with a
 * reset. So: the probe's slot, else the slot drawn from the shift, else the other
 * slot of the shift, else the sink, a socket that only waits. A migration never
 * goes to the sink, since closing the sink is how its queue is handed on; there,
 * and only there, SK_DROP means that nothing could take over. */

#include "tables.h"

#define TCP_NEW_SYN_RECV 12 /* include/net/tcp_states.h */

/* Gives what is queued on a closing socket to a slot, and counts it. */
static __always_inline bool hand_on(struct sk_reuseport_md *ctx, struct listener *l, __u32 slot, __u32 draw)
{
	struct place_key key = {slot, l->number};
	struct bpf_sock *moving = ctx->migrating_sk;
	struct moved *m, none = {};

	if (!give_counted(ctx, l, slot, draw, REASON_MIGRATED))
		return false;
	m = bpf_map_lookup_elem(&moves, &key);
	if (!m) {
		bpf_map_update_elem(&moves, &key, &none, BPF_NOEXIST);
		m = bpf_map_lookup_elem(&moves, &key);
	}
	if (m && moving) {
		if (moving->state == TCP_NEW_SYN_RECV)
			m->half_open++;
		else
			m->to_accept++;
	}
	return true;
}

/* Steers by the tables of one listener; false when they have nobody to take the
 * flow. A global function would lose what the verifier knows of l. */
static __noinline bool steer_listener(struct sk_reuseport_md *ctx, struct listener *l)
{
	__u32 number = l->number;
	__u64 word = shift_in_force(number);
	__u32 current = shift_current(word), other = shift_other(word);
	__u32 draw = shift_draw(ctx->hash, shift_salt(word));

	/* The packet of a migration is an empty dummy: there is nothing to read in it. */
	if (ctx->migrating_sk)
		return hand_on(ctx, l, current, draw) || hand_on(ctx, l, other, draw);

	struct source from = {};

	if (read_source(ctx, &from)) {
		__u32 *candidate = bpf_map_lookup_elem(&probes, &from);

		if (candidate && give_counted(ctx, l, *candidate, draw, REASON_PROBE))
			return true;
	}

	bool ramped = draw >> 16 < shift_weight(word);
	__u32 drawn = ramped ? other : current, spare = ramped ? current : other;

	if (give_counted(ctx, l, drawn, draw, ramped ? REASON_RAMPED : REASON_CURRENT) ||
	    give_counted(ctx, l, spare, draw, REASON_FALLBACK))
		return true;
	if (bpf_sk_select_reuseport(ctx, &sinks, &number, 0))
		return false;
	count(l, SLOTS, REASON_SINK);
	return true;
}

SEC("sk_reuseport/migrate")
int steer(struct sk_reuseport_md *ctx)
{
	struct address at = {};
	struct listener *l, *dual = NULL;

	read_address(ctx, &at);
	l = bpf_map_lookup_elem(&listeners, &at);
	if (l && steer_listener(ctx, l))
		return SK_PASS;
	/* Nothing that a program sees of a socket tells an IPv6 group with IPv4 in it
	 * from one without. Both can exist on one address, while a release puts one in
	 * the other's place; the kernel refuses a socket that is not of this group. */
	if (at.family == AF_INET6) {
		at.dual = 1;
		dual = bpf_map_lookup_elem(&listeners, &at);
		if (dual && steer_listener(ctx, dual))
			return SK_PASS;
	}
	/* A migration that nobody could take; else only before the sink is in place,
	 * or when somebody took it out. */
	count(l ?: dual, SLOTS, REASON_LOST);
	return SK_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
