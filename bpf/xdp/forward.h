/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Sends a frame to a real: other MAC addresses, and not an octet more. */

#include "parse.h"

#define AF_INET 2
#define AF_INET6 10

/* Asks the kernel's routes and neighbours where the real is. It has to be on a link
 * of this host: a router would send the packet back to the VIP. Gives PARSED, or
 * the reason for which it cannot be sent. */
static __always_inline __u32 ask_routes(struct xdp_md *ctx, const struct real *r, __u32 octets, struct bpf_fib_lookup *fib)
{
	long result;

	fib->ifindex = ctx->ingress_ifindex;
	fib->tot_len = octets - sizeof(struct ethhdr);
	fib->family = r->flags & REAL_IPV6 ? AF_INET6 : AF_INET;
	__builtin_memcpy(fib->ipv6_dst, r->addr, 16);
	result = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	switch (result) {
	case BPF_FIB_LKUP_RET_SUCCESS: {
		/* A gateway stands there in place of what was asked for. */
		__be32 other = fib->ipv6_dst[0] ^ r->addr[0];

		if (r->flags & REAL_IPV6)
			other |= (fib->ipv6_dst[1] ^ r->addr[1]) | (fib->ipv6_dst[2] ^ r->addr[2]) | (fib->ipv6_dst[3] ^ r->addr[3]);
		return other ? NO_ROUTE : PARSED;
	}
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return NO_NEIGHBOUR;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return NO_FORWARDING;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return TOO_LONG;
	}
	/* No route, one that refuses, one into a tunnel, one to this host, or an
	 * error: nowhere to send it. */
	return NO_ROUTE;
}

static __always_inline int leave(__u32 from, __u32 ifindex, bool routed, __u32 *problem)
{
	int verdict;

	if (ifindex == from)
		return XDP_TX;
	if (routed) /* by any interface, known to the table or not */
		return bpf_redirect(ifindex, 0);
	verdict = bpf_redirect_map(&devices, ifindex, XDP_DROP);
	if (verdict != XDP_REDIRECT)
		*problem = NO_DEVICE;
	return verdict;
}

/* Apart from the program: most packets do not come here, and the structure alone
 * takes longer to empty than the rest to send. */
static __noinline int forward_by_route(struct xdp_md *ctx, const struct real *r, __u32 octets, __u32 *problem)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct bpf_fib_lookup fib = {};

	if (!r || !problem || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	*problem = ask_routes(ctx, r, octets, &fib);
	if (*problem != PARSED)
		return XDP_DROP;
	*problem = FIB;
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	return leave(ctx->ingress_ifindex, fib.ifindex, true, problem);
}

/* Gives the verdict. problem: a reason that has become of the packet beside. */
static __always_inline int forward(struct xdp_md *ctx, const struct packet *p, const struct real *r, __u32 *problem)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if (!(r->flags & REAL_NEIGHBOUR)) {
		__u32 routed = PARSED;
		int verdict = forward_by_route(ctx, r, p->octets, &routed);

		*problem = routed;
		return verdict;
	}
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	/* Both addresses, in two words: the interface's follows the real's. */
	*(volatile __u64 *)(void *)eth = *(const volatile __u64 *)r->mac;
	*(volatile __u32 *)((void *)eth + 8) = *(const __u32 *)(r->mac + 8);
	return leave(p->from, r->ifindex, false, problem);
}
