// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* xdp: picks the real for each packet of a VIP, and sends the frame on with
 * another MAC address. In doubt a packet passes to this host's stack, as if the
 * program were not there. */

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include "tables.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define OPTION_SERVER 0xb7

struct packet {
	struct flow_key flow;
	__be16 port; /* of the VIP */
	__u8 proto;
	bool syn;
	__u8 *payload; /* TCP's options, or what UDP carries */
	void *end;
	__u32 options; /* octets of TCP's options */
	__u32 offset; /* of them in the frame */
};

static __always_inline __u32 jhash(__u32 a, __u32 b, __u32 c)
{
	/* Jenkins' final mix. */
#define ROL(x, k) (((x) << (k)) | ((x) >> (32 - (k))))
	c ^= b; c -= ROL(b, 14);
	a ^= c; a -= ROL(c, 11);
	b ^= a; b -= ROL(a, 25);
	c ^= b; c -= ROL(b, 16);
	a ^= c; a -= ROL(c, 4);
	b ^= a; b -= ROL(a, 14);
	c ^= b; c -= ROL(b, 24);
	return c;
}

static __always_inline __u32 slot_of(const struct flow_key *f)
{
	__u32 h = jhash(f->addr[0] ^ f->addr[1], f->addr[2] ^ f->addr[3], f->ports);

	return h % ring_size;
}

static __always_inline void count(__u32 number, enum reason reason, __u32 octets, bool local)
{
	struct tally *t = bpf_map_lookup_elem(&tallies, &number);

	if (!t)
		return;
	if (reason < REASONS)
		t->packets[reason]++;
	t->octets += octets;
	if (local)
		t->local_octets += octets;
}

/* The server of a connection ID in Katran's forms: the upper two bits of the first
 * octet say how wide its number is, 16, 24 or 32 bits. */
static __always_inline __u32 katran_server(const __u8 cid[5])
{
	switch (cid[0] >> 6) {
	case 1:
		return (__u32)(cid[0] & 0x3f) << 10 | (__u32)cid[1] << 2 | cid[2] >> 6;
	case 2:
		return (__u32)cid[1] << 16 | (__u32)cid[2] << 8 | cid[3];
	case 3:
		return (__u32)cid[1] << 24 | (__u32)cid[2] << 16 | (__u32)cid[3] << 8 | cid[4];
	}
	return 0;
}

/* The server that a short header's connection ID names in clear, or a long one's
 * of a packet that a server has chosen the ID of. */
static __always_inline __u32 quic_server(const struct packet *p, bool katran)
{
	__u8 *q = p->payload, *cid;

	if ((void *)(q + 6 + 17) > p->end)
		return 0;
	if (q[0] & 0x80) {
		__u32 version = (__u32)q[1] << 24 | (__u32)q[2] << 16 | (__u32)q[3] << 8 | q[4];
		__u32 type = (q[0] >> 4) & 3;

		/* Of long headers only a Handshake packet's ID is surely the server's; an Initial's
		 * may still be the client's own (RFC 9000, 7.2 and 17.2; RFC 9369, 3.2). */
		if (!(version == 1 && type == 2) && !(version == 0x6b3343cf && type == 3))
			return 0;
		if (q[5] != 17)
			return 0;
		cid = q + 6;
	} else {
		cid = q + 1;
	}
	if (cid[0] != 0x10)
		return katran ? katran_server(cid) : 0;
	return (__u32)cid[1] << 24 | (__u32)cid[2] << 16 | (__u32)cid[3] << 8 | cid[4];
}

/* TCP's options, and how far they were read. */
struct walk {
	__u8 octets[40];
	__u32 at, len, id;
};

static long next_option(__u32 i, struct walk *w)
{
	__u32 at = w->at;

	if (at > 34 || at + 6 > w->len || w->octets[at] == 0)
		return 1;
	if (w->octets[at] == 1) {
		w->at = at + 1;
		return 0;
	}
	if (w->octets[at] == OPTION_SERVER && w->octets[at + 1] == 6) {
		w->id = (__u32)w->octets[at + 2] << 24 | (__u32)w->octets[at + 3] << 16 | (__u32)w->octets[at + 4] << 8 | w->octets[at + 5];
		return 1;
	}
	if (w->octets[at + 1] < 2)
		return 1;
	w->at = at + w->octets[at + 1];
	return 0;
}

static __always_inline __u32 option_server(struct xdp_md *ctx, const struct packet *p)
{
	struct walk w = {.len = p->options};
	__u32 len = p->options;

	if (len < 6 || len > 40)
		return 0;
	if (bpf_xdp_load_bytes(ctx, p->offset, w.octets, len))
		return 0;
	bpf_loop(40, next_option, &w, 0);
	return w.id;
}

static __always_inline struct real *real_of(__u32 index)
{
	struct real *r = bpf_map_lookup_elem(&reals, &index);

	return r && index && (r->flags & REAL_UP) ? r : NULL;
}

/* Finds the real, and says by what. beside gets a bit for each thing that happened
 * on the way. */
static __always_inline struct real *choose(struct xdp_md *ctx, struct packet *p, const struct vip *v, bool learn, __u32 *index, enum reason *why, __u64 *beside)
{
	__u32 id = 0, slot, *found;
	struct real *r;
	struct flow *f;
	void *ring;

	if (p->proto == IPPROTO_UDP && v->flags & VIP_QUIC)
		id = quic_server(p, v->flags & VIP_KATRAN);
	else if (p->proto == IPPROTO_TCP && !p->syn && p->options >= 6)
		id = option_server(ctx, p);
	if (id) {
		found = bpf_map_lookup_elem(&servers, &id);
		if (!found) {
			*beside |= 1ULL << UNKNOWN_ID;
		} else {
			*index = *found;
			*why = p->proto == IPPROTO_UDP ? BY_CID : BY_OPTION;
			r = real_of(*index);
			if (r)
				return r;
			*beside |= 1ULL << DEAD_ID;
		}
	}
	f = p->syn ? NULL : bpf_map_lookup_elem(&flows, &p->flow);
	if (f && (p->proto == IPPROTO_TCP || bpf_ktime_get_ns() - f->seen < udp_idle)) {
		*index = f->real;
		*why = BY_TABLE;
		r = real_of(*index);
		if (r && r->epoch == f->epoch) {
			if (p->proto == IPPROTO_UDP && learn)
				f->seen = bpf_ktime_get_ns();
			return r;
		}
	}
	*why = NO_REAL;
	*index = 0;
	ring = bpf_map_lookup_elem(&rings, &v->ring);
	if (!ring)
		return NULL;
	slot = slot_of(&p->flow);
	found = bpf_map_lookup_elem(ring, &slot);
	if (!found)
		return NULL;
	r = real_of(*found);
	if (!r)
		return NULL;
	*index = *found;
	*why = BY_RING;
	if (learn) {
		struct flow n = {.real = *index, .epoch = r->epoch, .seen = bpf_ktime_get_ns()};

		bpf_map_update_elem(&flows, &p->flow, &n, BPF_ANY);
	}
	return r;
}

static __always_inline int run(struct xdp_md *ctx, bool explain)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct packet p = {.end = end};
	struct vip *v;
	__u32 zero = 0, index = 0, octets = end - data;
	enum reason why = NO_REAL;
	__u64 beside = 0;
	struct real_tally *rt;
	struct real *r;
	void *l4;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (!explain) {
		__u32 at = ctx->ingress_ifindex % MAX_LINKS;
		struct link *l = bpf_map_lookup_elem(&links, &at);

		if (!l || l->ifindex != ctx->ingress_ifindex || __builtin_memcmp(eth->h_dest, l->mac, 6))
			return XDP_PASS;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		struct vip4_key k = {};

		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff))
			return XDP_PASS;
		p.proto = ip->protocol;
		l4 = ip + 1;
		if (l4 + 8 > end || (p.proto != IPPROTO_TCP && p.proto != IPPROTO_UDP))
			return XDP_PASS;
		p.flow.addr[0] = ip->saddr;
		p.flow.ports = *(__be32 *)l4;
		k.addr = ip->daddr;
		k.port = ((__be16 *)l4)[1];
		k.proto = p.proto;
		v = bpf_map_lookup_elem(&vips4, &k);
		if (!v) {
			k.port = 0;
			v = bpf_map_lookup_elem(&vips4, &k);
		}
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		struct vip6_key k = {};

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		p.proto = ip->nexthdr;
		l4 = ip + 1;
		if (l4 + 8 > end || (p.proto != IPPROTO_TCP && p.proto != IPPROTO_UDP))
			return XDP_PASS;
		__builtin_memcpy(p.flow.addr, &ip->saddr, 16);
		p.flow.ports = *(__be32 *)l4;
		__builtin_memcpy(k.addr, &ip->daddr, 16);
		k.port = ((__be16 *)l4)[1];
		k.proto = p.proto;
		v = bpf_map_lookup_elem(&vips6, &k);
		if (!v) {
			k.port = 0;
			v = bpf_map_lookup_elem(&vips6, &k);
		}
	} else {
		return XDP_PASS;
	}
	if (!v)
		return XDP_PASS;
	p.flow.vip = v->serial;
	if (p.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || tcp->doff < 5)
			return XDP_PASS;
		p.syn = tcp->syn && !tcp->ack;
		p.payload = (void *)(tcp + 1);
		p.options = tcp->doff * 4 - 20;
		p.offset = p.payload - (__u8 *)data;
	} else {
		p.payload = l4 + 8;
	}
	r = choose(ctx, &p, v, !explain, &index, &why, &beside);
	if (explain) {
		struct answer *a = bpf_map_lookup_elem(&answers, &zero);

		if (a) {
			a->beside = beside | 1ULL << why | 1ULL << 63;
			a->vip = v->number;
			a->real = r ? index : 0;
		}
		return !r ? XDP_DROP : r->flags & REAL_LOCAL ? XDP_PASS : XDP_TX;
	}
	if (beside & 1ULL << UNKNOWN_ID)
		count(v->number, UNKNOWN_ID, 0, false);
	if (beside & 1ULL << DEAD_ID)
		count(v->number, DEAD_ID, 0, false);
	if (!r) {
		count(v->number, NO_REAL, 0, false);
		return XDP_DROP;
	}
	rt = bpf_map_lookup_elem(&real_tallies, &index);
	if (rt) {
		rt->packets++;
		rt->octets += octets;
		rt->flows += why == BY_RING;
	}
	count(v->number, why, octets, r->flags & REAL_LOCAL);
	if (r->flags & REAL_LOCAL) {
		count(v->number, LOCAL, 0, false);
		return XDP_PASS;
	}
	if (!(r->flags & REAL_NEIGHBOUR)) {
		count(v->number, NO_NEIGHBOUR, 0, false);
		return XDP_DROP;
	}
	__builtin_memcpy(eth->h_dest, r->mac, 6);
	__builtin_memcpy(eth->h_source, r->source, 6);
	if (r->ifindex == ctx->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(r->ifindex, 0);
}

SEC("xdp")
int balance(struct xdp_md *ctx)
{
	return run(ctx, false);
}

SEC("xdp")
int explain(struct xdp_md *ctx)
{
	return run(ctx, true);
}
