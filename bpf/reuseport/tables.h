/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What the programs of a node's reuseport groups share: the tables, and how a flow
 * is given to a socket. */

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "shift.h"

#define SLOTS 256
#define DATAGRAMS SLOTS /* added to a slot: its sockets for datagrams are armed and emptied on their own */
#define WORKERS 64
#define LISTENERS 16385 /* element 0 speaks for all */
#define SOCKETS (1 << 18)
#define PLACES (1 << 17)
#define MOVES (1 << 12)

#define AF_INET 2 /* include/linux/socket.h */
#define AF_INET6 10

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LISTENERS);
	__type(key, __u32);
	__type(value, __u64);
} shift SEC(".maps");

/* Where a probe comes from, and the only slot that may answer it. */
struct source {
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__be16 port;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct source);
	__type(value, __u32);
} probes SEC(".maps");

/* How a run ended; each run moves one of the first seven. */
enum reason {
	REASON_CURRENT,		/* to the current slot */
	REASON_RAMPED,		/* to the other slot, by weight */
	REASON_PROBE,		/* to the candidate, by source address */
	REASON_FALLBACK,	/* to the other slot: the drawn one had no socket */
	REASON_SINK,		/* nobody was there; it waits */
	REASON_MIGRATED,	/* its listener closed; handed on */
	REASON_LOST,		/* no choice was left: migration without a successor, or no sink */
	REASON_WORKER_MISSED,	/* beside the others: the drawn worker had no socket, its neighbour took it */
	/* Datagrams alone. */
	REASON_NAMED,		/* to the slot and worker that the connection ID names */
	REASON_REMEMBERED,	/* to where the first datagram of the flow went */
	REASON_RESET,		/* the named slot is dead: this one tells the client */
	REASON_STRANGER,	/* no new flow, and nobody's: to the sink, unanswered */
	REASONS,
};

enum choice {
	CHOICE_HASH,
	CHOICE_CPU,
};

/* Keeps the enums in the BTF, where the Go side reads them. */
const enum reason *export_reason __attribute__((unused));
const enum choice *export_choice __attribute__((unused));

/* What the kernel forms a group by (inet_reuseport_add_sock, net/ipv4/
 * inet_hashtables.c), as far as a node's groups differ in it. */
struct address {
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u16 port;    /* host order */
	__u8 family;   /* of the socket, not of the packet */
	__u8 protocol;
	__u8 dual; /* IPv6 without IPV6_V6ONLY: a group of its own */
	__u8 pad[3];
};

struct listener {
	__u32 number;
	__u32 forget; /* UDP: after how many ms of silence a flow is; 0: it is QUIC */
	__u64 runs[REASONS];
};

/* One look-up gives the listener's number and this CPU's counters of it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LISTENERS - 1);
	__type(key, struct address);
	__type(value, struct listener);
} listeners SEC(".maps");

/* By listener. User space reads a socket's cookie where the value has eight bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, LISTENERS);
	__type(key, __u32);
	__type(value, __u64);
} sinks SEC(".maps");

/* By slot, then by slot for datagrams: 0 gives nothing, whatever sockets are still in it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2 * SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} armed SEC(".maps");

/* The sockets of all generations. Those of one on one listener are side by side. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, SOCKETS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct place_key {
	__u32 slot; /* DATAGRAMS added for those */
	__u32 listener;
};

/* Where among the sockets are those that a slot has on a listener. */
struct place {
	__u32 first;
	__u8 workers;
	__u8 choice;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PLACES);
	__type(key, struct place_key);
	__type(value, struct place);
} places SEC(".maps");

/* The runs of all listeners by slot; what has no slot is counted in the extra one. */
struct tally {
	__u64 runs[REASONS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS + 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

/* What a slot got on a listener from listening sockets that closed. A handshake that
 * moves more than once, or again when its last ACK comes, is counted each time. */
struct moved {
	__u64 half_open;	/* its ACK had not come */
	__u64 to_accept;	/* finished, in an accept queue */
};

/* Made at the first one; what finds no room is in the tally of the slot alone. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MOVES);
	__type(key, struct place_key);
	__type(value, struct moved);
} moves SEC(".maps");

static __always_inline void count(struct listener *l, __u32 slot, enum reason reason)
{
	struct tally *t = bpf_map_lookup_elem(&tallies, &slot);

	if (l)
		l->runs[reason]++;
	if (t)
		t->runs[reason]++;
}

/* What give answers. */
#define NOBODY 0
#define DRAWN 1
#define NEIGHBOUR 2

/* Gives the flow to a worker of the slot. A global function: the verifier walks
 * its loop once, and not at each place that calls it. */
__noinline int give(struct sk_reuseport_md *ctx, __u32 slot, __u32 number, __u32 draw)
{
	struct place_key key = {slot, number};
	__u64 *is_armed = bpf_map_lookup_elem(&armed, &slot);
	struct place *p = bpf_map_lookup_elem(&places, &key);
	__u32 workers, first;

	if (!is_armed || !*(volatile __u64 *)is_armed || !p)
		return NOBODY;
	workers = p->workers;
	if (!workers || workers > WORKERS)
		return NOBODY;
	/* The low half of the draw: the high half has decided the slot. */
	first = p->choice == CHOICE_CPU ? bpf_get_smp_processor_id() : draw & 0xffff;

	/* The first to try is the drawn one; its neighbours stand in for it. */
	for (int i = 0; i < WORKERS && i < workers; i++) {
		__u32 index = p->first + (first + i) % workers;

		if (!bpf_sk_select_reuseport(ctx, &sockets, &index, 0))
			return i ? NEIGHBOUR : DRAWN;
	}
	return NOBODY;
}

/* Gives the flow to a worker of the slot, and counts it. */
static __always_inline bool give_counted(struct sk_reuseport_md *ctx, struct listener *l, __u32 slot, __u32 draw, enum reason reason)
{
	int got = give(ctx, slot, l->number, draw);

	if (got == NOBODY)
		return false;
	if (got == NEIGHBOUR)
		count(l, slot, REASON_WORKER_MISSED);
	count(l, slot, reason);
	return true;
}

static __always_inline bool read_source(struct sk_reuseport_md *ctx, struct source *from)
{
	__be16 *port = ctx->data; /* first in the headers of TCP and of UDP */

	if ((void *)(port + 1) > (void *)ctx->data_end)
		return false;
	from->port = *port;
	if (ctx->eth_protocol == bpf_htons(ETH_P_IP)) {
		from->addr[10] = from->addr[11] = 0xff;
		return !bpf_skb_load_bytes_relative(ctx, 12, from->addr + 12, 4, BPF_HDR_START_NET);
	}
	return !bpf_skb_load_bytes_relative(ctx, 8, from->addr, 16, BPF_HDR_START_NET);
}

static __always_inline void read_address(struct sk_reuseport_md *ctx, struct address *at)
{
	struct bpf_sock *sk = ctx->sk, *moving = ctx->migrating_sk;

	at->family = sk->family;
	at->protocol = sk->protocol;
	/* A socket that has closed keeps its address and forgets its port
	 * (inet_put_port); what it accepted has it still. */
	at->port = sk->src_port;
	if (moving) /* the verifier wants a load for each kind of pointer */
		at->port = ((volatile struct bpf_sock *)moving)->src_port;
	if (at->family == AF_INET) {
		__u32 v4 = sk->src_ip4;

		at->addr[10] = at->addr[11] = 0xff;
		__builtin_memcpy(at->addr + 12, &v4, 4);
	} else {
		__u32 v6[4] = {sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]};

		__builtin_memcpy(at->addr, v6, 16);
	}
}

static __always_inline __u64 shift_in_force(__u32 own)
{
	__u32 all = 0;
	__u64 *word = bpf_map_lookup_elem(&shift, &own);

	if (!word || !*word)
		word = bpf_map_lookup_elem(&shift, &all);
	return word ? *(volatile __u64 *)word : 0;
}
