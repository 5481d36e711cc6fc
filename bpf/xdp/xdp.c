// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* xdp: picks the real for each packet of a VIP, and sends the frame on with another
 * MAC address. In doubt a packet passes to this host's stack, as if the program
 * were not there.
 *
 * The order: the server that a QUIC connection ID or a TCP option names, then the
 * connection table, then the ring. An id that nobody has, or whose server is down,
 * is as if it were not there. */

#define CID_IN_PACKET /* server_id.h */

#include "flows.h"
#include "forward.h"
#include "id.h"

/* What is decided about a packet. */
struct choice {
	struct real *real;
	__u32 index;
	__u32 why;    /* enum reason */
	__u64 beside; /* a bit for each reason */
};

static __always_inline bool take(struct choice *c, __u32 index, __u32 why)
{
	struct real *r = bpf_map_lookup_elem(&reals, &index);

	if (!r || !(r->flags & REAL_UP))
		return false;
	c->real = r;
	c->index = index;
	c->why = why;
	return true;
}

static __always_inline bool by_id(__u32 id, struct choice *c, __u32 why)
{
	__u32 *index;

	if (id < SMALL_IDS)
		index = bpf_map_lookup_elem(&servers, &id);
	else
		index = bpf_map_lookup_elem(&large_servers, &id);
	if (!index || !*index)
		c->beside |= 1ULL << UNKNOWN_ID;
	else if (take(c, *index, why))
		return true;
	else
		c->beside |= 1ULL << DEAD_ID;
	return false;
}

/* opening: the packet begins a connection, and a real that drains gets no more of them. */
static __always_inline bool by_table(const struct packet *p, __u64 hash, struct choice *c, bool opening, bool effects)
{
	struct flow f = {}, *entry = recall(flow_tag(hash, p->vip), &f);
	__u32 time = tick, rest = TICKS_PER_SECOND;
	__s32 silent;

	if (!entry)
		return false;
	if (p->proto == IPPROTO_UDP) {
		time = now();
		rest = udp_idle >> 3;
		if ((__s32)(time - f.seen) > (__s32)udp_idle)
			return false;
	}
	if (!take(c, f.owner % MAX_REALS, p->icmp ? BY_ICMP : BY_TABLE))
		return false;
	if (f.owner != owner(c->index, c->real->epoch) || (opening && c->real->flags & REAL_DRAINING))
		return false;
	silent = time - f.seen;
	/* Not each time: the line of memory is other CPUs' too. */
	if (effects && !p->icmp && silent > (__s32)rest)
		entry->seen = time;
	return true;
}

static __always_inline bool by_ring(const struct packet *p, __u64 hash, struct choice *c)
{
	void *ring = bpf_map_lookup_elem(&rings, &p->vip->ring);
	__u32 slot = (__u32)(hash >> 32) % ring_size, at = slot / SLOTS, index;
	struct slots *s;

	if (!ring)
		return false;
	s = bpf_map_lookup_elem(ring, &at);
	if (!s)
		return false;
	index = s->reals[slot % SLOTS];
	return index && take(c, index, p->icmp ? BY_ICMP : BY_RING);
}

/* Has the table remember a flow, unless this CPU has had too many of them. */
static __always_inline void learn(const struct packet *p, __u64 hash, struct choice *c)
{
	struct flow f = {owner(c->index, c->real->epoch), now()};
	__u32 zero = 0;
	struct guard *g = bpf_map_lookup_elem(&guards, &zero);

	if (!g)
		return;
	if (tick != f.seen)
		tick = f.seen;
	if (f.seen - g->since >= TICKS_PER_SECOND) {
		g->since = f.seen;
		g->count = 0;
	}
	if (g->count >= new_flows_per_cpu || !remember(flow_tag(hash, p->vip), f))
		c->beside |= 1ULL << UNLEARNED;
	else
		g->count++;
}

static __always_inline bool choose(struct xdp_md *ctx, const struct packet *p, struct choice *c, bool effects)
{
	const struct tcphdr *tcp = p->l4;
	bool opening = false, reset = false;
	__u64 hash;
	__u32 id = 0;

	/* The bound again: the verifier has lost it by here. */
	if (p->proto == IPPROTO_TCP && !p->icmp && (void *)(tcp + 1) <= p->end) {
		opening = tcp->syn;
		reset = tcp->rst;
		if (table_first && !opening && by_table(p, flow_hash(p), c, false, effects))
			return true;
		/* Before the SYN-ACK a client cannot know the server. */
		if (!opening)
			id = option_server(ctx, p);
		if (id && by_id(id, c, BY_OPTION))
			return true;
	} else if (p->vip->flags & VIP_QUIC && !p->icmp) {
		id = quic_server(p, &opening);
		if (id && by_id(id, c, BY_CID))
			return true;
	}
	hash = flow_hash(p);
	if (by_table(p, hash, c, opening, effects))
		return true;
	if (!by_ring(p, hash, c)) {
		c->real = NULL;
		c->index = 0;
		c->why = NO_REAL;
		return false;
	}
	if (effects && !p->icmp && !reset)
		learn(p, hash, c);
	return true;
}

static __always_inline void count(struct tally *t, __u32 reason)
{
	barrier_var(reason); /* or the compiler drops a bound that the verifier wants */
	if (reason < REASONS)
		t->packets[reason]++;
}

static __always_inline void count_choice(struct xdp_md *ctx, const struct packet *p, const struct choice *c, __u32 problem)
{
	struct tally *t = bpf_map_lookup_elem(&tallies, &p->vip->number);
	struct real_tally *of_real;
	__u64 octets;

	if (!t)
		return;
	count(t, c->why);
	if (c->beside) {
		if (c->beside & 1ULL << UNKNOWN_ID)
			count(t, UNKNOWN_ID);
		if (c->beside & 1ULL << DEAD_ID)
			count(t, DEAD_ID);
		if (c->beside & 1ULL << UNLEARNED)
			count(t, UNLEARNED);
	}
	if (problem != PARSED) {
		count(t, problem);
		if (problem != FIB && problem != LOCAL)
			return;
	}
	if (!c->real)
		return;
	/* Asking the kernel takes a tenth of all that is done for a packet: only where
	 * there seems to be more of the frame than its first buffer. */
	octets = ctx->data_end - ctx->data;
	if (p->octets > octets)
		octets = bpf_xdp_get_buff_len(ctx);
	t->octets += octets;
	if (problem == LOCAL)
		t->local_octets += octets;
	of_real = bpf_map_lookup_elem(&real_tallies, &c->index);
	if (!of_real)
		return;
	of_real->packets++;
	of_real->octets += octets;
	of_real->flows += c->why == BY_RING;
}

/* A frame that is for the address of a VIP, and not for the VIP. */
static __always_inline int leave_alone(__u32 why, bool effects)
{
	__u32 nobody = 0;
	struct tally *t;
	struct answer *a;

	if (why == NOT_OURS)
		return XDP_PASS;
	if (effects) {
		t = bpf_map_lookup_elem(&tallies, &nobody);
		if (t)
			count(t, why);
	} else {
		a = bpf_map_lookup_elem(&answers, &nobody);
		if (a)
			a->beside = 1ULL << why;
	}
	return XDP_PASS;
}

static __always_inline int run(struct xdp_md *ctx, bool effects)
{
	struct packet p = {.end = (void *)(long)ctx->data_end, .from = ctx->ingress_ifindex};
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 why, problem = PARSED, zero = 0;
	struct choice c = {};
	struct answer *a;
	__be16 type;
	int verdict;

	if ((void *)(eth + 1) > p.end)
		return XDP_PASS;
	type = *(volatile __be16 *)(void *)&eth->h_proto;
	if (type == bpf_htons(ETH_P_IP))
		why = read_ipv4(eth, &p, effects);
	else if (type == bpf_htons(ETH_P_IPV6))
		why = read_ipv6(eth, &p, effects);
	else
		return XDP_PASS;
	if (why != PARSED)
		return leave_alone(why, effects);
	if (!choose(ctx, &p, &c, effects)) {
		verdict = XDP_DROP;
	} else if (c.real->flags & REAL_LOCAL) {
		problem = LOCAL;
		verdict = XDP_PASS;
	} else {
		verdict = forward(ctx, &p, c.real, &problem);
	}
	if (effects) {
		count_choice(ctx, &p, &c, problem);
		return verdict;
	}
	a = bpf_map_lookup_elem(&answers, &zero);
	if (a) {
		a->beside = c.beside | 1ULL << c.why | (problem < REASONS ? 1ULL << problem : 0);
		a->vip = p.vip->number;
		a->real = c.index;
	}
	return verdict;
}

SEC("xdp.frags")
int balance(struct xdp_md *ctx)
{
	return run(ctx, true);
}

/* Says what would become of a packet, and does nothing else. */
SEC("xdp.frags")
int explain(struct xdp_md *ctx)
{
	return run(ctx, false);
}

char _license[] SEC("license") = "Dual BSD/GPL";
