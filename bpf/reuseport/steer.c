// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* sk_reuseport: picks the socket of the generation that gets a new flow.
 *
 * The kernel runs it when a segment finds no connection but a group of listening
 * sockets, and again, with migrating_sk set, when a listening socket closes and
 * what is queued on it needs another home. One instance serves one listener's
 * group; LISTENER is its number.
 *
 * Every path ends in an explicit choice. A bare SK_PASS would let the kernel hash
 * over all members, draining ones too; SK_DROP would answer the client with a
 * reset. So: the probe's slot, else the slot drawn from the shift, else the other
 * slot of the shift, else the sink, a socket that only waits. A migration never
 * goes to the sink, since closing the sink is how its queue is handed on; there,
 * and only there, SK_DROP means that nothing could take over. */

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "shift.h"

/* The key of a socket is slot * WORKERS + worker; the stride never changes, so
 * that a pinned map outlives the supervisor that made it. */
#define SLOTS 256
#define WORKERS 64
#define SINK (SLOTS * WORKERS)
#define LISTENERS 4097 /* element 0 speaks for all */

const volatile __u32 LISTENER = 0;

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

/* User space reads a socket's cookie where the value has eight bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, SINK + 1);
	__type(key, __u32);
	__type(value, __u64);
} socks SEC(".maps");

enum choice {
	CHOICE_HASH,
	CHOICE_CPU,
};

/* A slot of this listener. Written as one u64 (an array's elements are eight bytes
 * apart at least): no program sees half of it. */
struct slot {
	__u8 workers; /* 0: gives nothing, whatever sockets are still in it */
	__u8 choice;
	__u8 pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

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
	REASONS,
};

/* Keeps the enums in the BTF, where the Go side reads them. */
const enum reason *export_reason __attribute__((unused));
const enum choice *export_choice __attribute__((unused));

/* By slot; what has no slot is counted in the extra one. */
struct tally {
	__u64 runs[REASONS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS + 1);
	__type(key, __u32);
	__type(value, struct tally);
} counters SEC(".maps");

static __always_inline void count(__u32 slot, enum reason reason)
{
	struct tally *c = bpf_map_lookup_elem(&counters, &slot);

	if (c)
		c->runs[reason]++;
}

/* Gives the flow to a worker of the slot; 0 when it has none. A global function:
 * the verifier walks its loop once, and not at each place that calls it. */
__noinline int give(struct sk_reuseport_md *ctx, __u32 slot, __u32 draw)
{
	struct slot *s = bpf_map_lookup_elem(&slots, &slot);
	__u32 workers, first;

	if (!s)
		return 0;
	workers = s->workers;
	if (!workers || workers > WORKERS)
		return 0;
	/* The low half of the draw: the high half has decided the slot. */
	first = s->choice == CHOICE_CPU ? bpf_get_smp_processor_id() : draw & 0xffff;

	/* The first to try is the drawn one; its neighbours stand in for it. */
	for (int i = 0; i < WORKERS && i < workers; i++) {
		__u32 key = slot * WORKERS + (first + i) % workers;

		if (!bpf_sk_select_reuseport(ctx, &socks, &key, 0)) {
			if (i)
				count(slot, REASON_WORKER_MISSED);
			return 1;
		}
	}
	return 0;
}

static __always_inline bool read_source(struct sk_reuseport_md *ctx, struct source *from)
{
	void *data = ctx->data, *end = ctx->data_end;
	struct tcphdr *tcp = data;

	if ((void *)(tcp + 1) > end)
		return false;
	from->port = tcp->source;
	if (ctx->eth_protocol == bpf_htons(ETH_P_IP)) {
		from->addr[10] = from->addr[11] = 0xff;
		return !bpf_skb_load_bytes_relative(ctx, 12, from->addr + 12, 4, BPF_HDR_START_NET);
	}
	return !bpf_skb_load_bytes_relative(ctx, 8, from->addr, 16, BPF_HDR_START_NET);
}

static __always_inline __u64 shift_in_force(void)
{
	__u32 own = LISTENER, all = 0;
	__u64 *word = bpf_map_lookup_elem(&shift, &own);

	if (!word || !*word)
		word = bpf_map_lookup_elem(&shift, &all);
	return word ? *(volatile __u64 *)word : 0;
}

SEC("sk_reuseport/migrate")
int steer(struct sk_reuseport_md *ctx)
{
	__u64 word = shift_in_force();
	__u32 current = shift_current(word), other = shift_other(word);
	__u32 draw = shift_draw(ctx->hash, shift_salt(word));
	__u32 sink = SINK;

	/* The packet of a migration is an empty dummy: there is nothing to read in it. */
	if (ctx->migrating_sk) {
		if (give(ctx, current, draw)) {
			count(current, REASON_MIGRATED);
			return SK_PASS;
		}
		if (give(ctx, other, draw)) {
			count(other, REASON_MIGRATED);
			return SK_PASS;
		}
		count(SLOTS, REASON_LOST);
		return SK_DROP;
	}

	struct source from = {};

	if (read_source(ctx, &from)) {
		__u32 *candidate = bpf_map_lookup_elem(&probes, &from);

		if (candidate && give(ctx, *candidate, draw)) {
			count(*candidate, REASON_PROBE);
			return SK_PASS;
		}
	}

	bool ramped = draw >> 16 < shift_weight(word);
	__u32 drawn = ramped ? other : current, spare = ramped ? current : other;

	if (give(ctx, drawn, draw)) {
		count(drawn, ramped ? REASON_RAMPED : REASON_CURRENT);
		return SK_PASS;
	}
	if (give(ctx, spare, draw)) {
		count(spare, REASON_FALLBACK);
		return SK_PASS;
	}
	if (!bpf_sk_select_reuseport(ctx, &socks, &sink, 0)) {
		count(SLOTS, REASON_SINK);
		return SK_PASS;
	}
	/* Only before the sink is in place, or when somebody took it out. */
	count(SLOTS, REASON_LOST);
	return SK_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
