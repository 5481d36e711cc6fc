// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* sk_reuseport: picks the socket that gets a datagram.
 *
 * The kernel runs it for each datagram (or train of them, under GRO) that comes
 * to a group of UDP sockets. There is no connection that it would look up first:
 * this program is what keeps a flow where it is.
 *
 * QUIC: a connection ID of ours names the slot and the worker, whatever the type
 * of the packet. A long header with any other ID begins a connection: it goes by
 * the shift, and is remembered by that ID, for a first flight can be two
 * datagrams or be sent again, and half a handshake is of no use elsewhere. Other
 * flows of UDP are remembered by their addresses.
 *
 * A slot that lives is never given what another slot's connections are sent: a
 * packet that finds no socket there goes to the sink, a socket that takes nothing
 * and answers nothing. Of a slot that is dead one in the shift hears, and tells
 * the client by a stateless reset (RFC 9000, section 10.3). SK_DROP would make
 * the kernel answer for us, by ICMP; a bare SK_PASS would hash over everybody. */

#include "tables.h"
#include "quic.h"
#include "server_id.h"

#define REMEMBERED (1 << 16)
#define UDP_HEAD 8

/* A handshake has ended by then, and its packets carry an ID of ours. */
#define HANDSHAKE_MS 10000
#define NS_PER_MS 1000000ULL

const volatile __u32 SERVER_ID = 0;

struct flow_key {
	__u32 listener;
	__u8 len; /* of a connection ID; FLOW_ADDRESS: id is the client's address and port */
	__u8 id[QUIC_MAX_CID];
	__u8 pad[3];
};

#define FLOW_ADDRESS 0xff

struct flow {
	__u32 slot;
	__u32 worker;
	__u64 seen; /* ns, CLOCK_MONOTONIC, to the jiffy */
};

/* A flood evicts entries, which costs a handshake a retransmission and nothing
 * else: the second generation to see its first flight answers it too. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, REMEMBERED);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Gives the datagram to one worker of a slot and to no other. */
__noinline int give_worker(struct sk_reuseport_md *ctx, __u32 slot, __u32 number, __u32 worker)
{
	struct place_key key = {slot + DATAGRAMS, number};
	struct place *p = bpf_map_lookup_elem(&places, &key);
	__u32 index;

	if (!p || worker >= p->workers)
		return NOBODY;
	index = p->first + worker;
	return bpf_sk_select_reuseport(ctx, &sockets, &index, 0) ? NOBODY : DRAWN;
}

/* A slot that was never armed is dead, too: nobody can have an ID of it. */
static __always_inline bool is_alive(__u32 slot)
{
	__u32 key = slot + DATAGRAMS;
	__u64 *arm = bpf_map_lookup_elem(&armed, &key);

	return arm && *(volatile __u64 *)arm;
}

/* The worker that a flow is drawn; 0 workers: the slot has none. */
static __always_inline __u32 draw_worker(__u32 slot, __u32 number, __u32 draw, bool *any)
{
	struct place_key key = {slot + DATAGRAMS, number};
	struct place *p = bpf_map_lookup_elem(&places, &key);
	__u32 workers = p ? p->workers : 0;

	*any = workers;
	if (!workers)
		return 0;
	return (p->choice == CHOICE_CPU ? bpf_get_smp_processor_id() : draw & 0xffff) % workers;
}

/* Gives a new flow to a slot. */
static __always_inline bool begin_at(struct sk_reuseport_md *ctx, __u32 number, __u32 slot, __u32 draw, struct flow *f)
{
	bool any;

	if (!is_alive(slot))
		return false;
	f->slot = slot;
	f->worker = draw_worker(slot, number, draw, &any);
	return any && give_worker(ctx, slot, number, f->worker) == DRAWN;
}

static __noinline bool to_sink(struct sk_reuseport_md *ctx, struct listener *l, enum reason reason)
{
	__u32 number = l->number;

	if (bpf_sk_select_reuseport(ctx, &sinks, &number, 0))
		return false;
	count(l, SLOTS, reason);
	return true;
}

/* A new flow, or one that is remembered by key. */
static __noinline bool steer_new(struct sk_reuseport_md *ctx, struct listener *l, struct flow_key *key, struct source *from)
{
	__u32 number = l->number, forget = l->forget ?: HANDSHAKE_MS;
	__u64 word = shift_in_force(number), now = bpf_ktime_get_coarse_ns();
	__u32 current = shift_current(word), other = shift_other(word);
	__u32 draw = shift_draw(ctx->hash, shift_salt(word));
	bool ramped = draw >> 16 < shift_weight(word);
	__u32 drawn = ramped ? other : current, spare = ramped ? current : other;
	struct flow *known = bpf_map_lookup_elem(&flows, key), f = {.seen = now};
	__u32 *candidate;

	if (known && now - known->seen < forget * NS_PER_MS && is_alive(known->slot) &&
	    give_worker(ctx, known->slot, number, known->worker) == DRAWN) {
		known->seen = now;
		count(l, known->slot, REASON_REMEMBERED);
		return true;
	}
	candidate = bpf_map_lookup_elem(&probes, from);
	if (candidate && begin_at(ctx, number, *candidate & (SLOTS - 1), draw, &f)) {
		count(l, f.slot, REASON_PROBE);
	} else if (begin_at(ctx, number, drawn, draw, &f)) {
		count(l, f.slot, ramped ? REASON_RAMPED : REASON_CURRENT);
	} else if (begin_at(ctx, number, spare, draw, &f)) {
		count(l, f.slot, REASON_FALLBACK);
	} else {
		return to_sink(ctx, l, REASON_SINK);
	}
	bpf_map_update_elem(&flows, key, &f, BPF_ANY);
	return true;
}

/* A packet whose connection ID names a slot of this node. */
static __noinline bool steer_named(struct sk_reuseport_md *ctx, struct listener *l, struct owner *o)
{
	__u32 slot = o->slot, heir, draw;
	struct flow f;
	__u64 word;

	if (is_alive(slot)) {
		if (give_worker(ctx, slot, l->number, o->worker) != DRAWN)
			return to_sink(ctx, l, REASON_STRANGER);
		count(l, slot, REASON_NAMED);
		return true;
	}
	word = shift_in_force(l->number);
	heir = shift_current(word);
	draw = shift_draw(ctx->hash, shift_salt(word));
	if (!begin_at(ctx, l->number, heir, draw, &f)) {
		heir = shift_other(word); /* the current one does not have this listener */
		if (!begin_at(ctx, l->number, heir, draw, &f))
			return to_sink(ctx, l, REASON_SINK);
	}
	count(l, heir, REASON_RESET);
	return true;
}

static __always_inline bool steer_addresses(struct sk_reuseport_md *ctx, struct listener *l)
{
	struct flow_key key = {.listener = l->number, .len = FLOW_ADDRESS};
	struct source from = {};

	if (!read_source(ctx, &from))
		return to_sink(ctx, l, REASON_STRANGER);
	__builtin_memcpy(key.id, &from, 18);
	return steer_new(ctx, l, &key, &from);
}

/* Reads the head of a packet of QUIC: most lie in one piece, and need no call for it. */
static __always_inline bool read_head(struct sk_reuseport_md *ctx, __u8 head[QUIC_HEAD])
{
	void *at = ctx->data + UDP_HEAD;

	if (at + QUIC_HEAD <= ctx->data_end) {
		__builtin_memcpy(head, at, QUIC_HEAD);
		return true;
	}
	/* No packet of ours or to us is shorter: an ID, a packet number, 16 octets of tag. */
	return ctx->len >= UDP_HEAD + QUIC_HEAD && !bpf_skb_load_bytes(ctx, UDP_HEAD, head, QUIC_HEAD);
}

static __always_inline bool steer_quic(struct sk_reuseport_md *ctx, struct listener *l)
{
	struct flow_key key = {.listener = l->number};
	struct source from = {};
	__u8 head[QUIC_HEAD];
	struct owner owner;
	enum quic_form form;
	__u32 cid_len;

	if (!read_head(ctx, head))
		return to_sink(ctx, l, REASON_STRANGER);
	form = quic_form(head, QUIC_HEAD, &cid_len);
	if (form == QUIC_SHORT) {
		if (owner_of(head + QUIC_SHORT_HEAD, &owner) && owner.server_id == SERVER_ID)
			return steer_named(ctx, l, &owner);
		/* A connection of nobody here. Whoever got it would answer by a reset. */
		return to_sink(ctx, l, REASON_STRANGER);
	}
	if (cid_len > QUIC_MAX_CID)
		return to_sink(ctx, l, REASON_STRANGER);
	if (cid_len == CID_LEN && owner_of(head + QUIC_LONG_HEAD, &owner) && owner.server_id == SERVER_ID)
		return steer_named(ctx, l, &owner);
	/* A client's first ID has eight octets at least (RFC 9000, section 7.2). Of shorter
	 * ones there are too few to tell flows apart. */
	if (cid_len < QUIC_MIN_FIRST_CID)
		return steer_addresses(ctx, l);
	if (!read_source(ctx, &from))
		return to_sink(ctx, l, REASON_STRANGER);
	key.len = cid_len;
	for (__u32 i = 0; i < QUIC_MAX_CID; i++)
		key.id[i] = i < cid_len ? head[QUIC_LONG_HEAD + i] : 0;
	return steer_new(ctx, l, &key, &from);
}

static __noinline bool steer_datagram(struct sk_reuseport_md *ctx, struct listener *l)
{
	return l->forget ? steer_addresses(ctx, l) : steer_quic(ctx, l);
}

SEC("sk_reuseport")
int datagram(struct sk_reuseport_md *ctx)
{
	struct address at = {};
	struct listener *l, *dual = NULL;

	read_address(ctx, &at);
	l = bpf_map_lookup_elem(&listeners, &at);
	if (l && steer_datagram(ctx, l))
		return SK_PASS;
	if (at.family == AF_INET6) { /* see steer.c */
		at.dual = 1;
		dual = bpf_map_lookup_elem(&listeners, &at);
		if (dual && steer_datagram(ctx, dual))
			return SK_PASS;
	}
	/* Before the sink is in place, or where nobody in the shift has this listener:
	 * the client is told that it is closed, by ICMP. */
	count(l ?: dual, SLOTS, REASON_LOST);
	return SK_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
