/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The server that a packet names, 0 where it names none. */

#include "katran.h"
#include "parse.h"
#include "quic.h"
#include "server_id.h"
#include "tcp_option.h"

/* Reads a connection ID. Packets with fewer octets than QUIC_HEAD have none: what
 * carries a server's is longer, by its payload and its authentication tag. opening:
 * it may begin a connection. */
static __always_inline __u32 quic_server(const struct packet *p, bool *opening)
{
	const struct udphdr *udp = p->l4;
	const __u8 *head = (void *)(udp + 1), *cid;
	struct owner owner;
	__u32 len;
	bool katran = p->vip->flags & VIP_KATRAN;

	if ((void *)(head + QUIC_HEAD) > p->end || bpf_ntohs(udp->len) < sizeof(*udp) + QUIC_HEAD)
		return 0;
	if (quic_form(head, QUIC_HEAD, &len) == QUIC_LONG) {
		cid = head + QUIC_LONG_HEAD;
		*opening = true;
		katran = katran && len >= KATRAN_MIN_CID && len <= QUIC_MAX_CID && katran_long(head);
		/* Also in an Initial: a client takes up the server's ID with the first
		 * answer (RFC 9000 section 7.2). One that it has made up looks like ours
		 * once in 2^40 / servers, and is then at home there all the same. */
		if (len != CID_LEN)
			return katran ? katran_server(cid) : 0;
	} else {
		cid = head + QUIC_SHORT_HEAD;
	}
	if (owner_of(cid, &owner))
		return owner.server_id;
	return katran ? katran_server(cid) : 0;
}

static __always_inline __u32 option_value(const __u8 *option)
{
	__u32 value = *(const volatile __u32 *)(option + 2);

	return host_order ? value : bpf_ntohl(value);
}

/* A walk through TCP's options. */
struct walk {
	struct xdp_md *ctx;
	__u32 at;	  /* offset in the frame of the next option */
	__u32 options_end; /* and of the first octet behind them */
	__u32 id;
};

/* Reads one option; 1 ends the walk. A function of its own, so that the verifier
 * goes through it once and not for each way to have come there. */
static long next_option(__u32 n, struct walk *w)
{
	const __u8 *o = (void *)(long)w->ctx->data;
	const void *end = (void *)(long)w->ctx->data_end;
	__u32 at = w->at;

	if (at > 1024 || at + TCP_OPTION_LEN > w->options_end)
		return 1;
	o += at;
	if ((void *)(o + TCP_OPTION_LEN) > end || o[0] == 0)
		return 1;
	if (o[0] == 1) {
		/* They come in pairs and, in bad faith, in fours. */
		w->at = at + (*(__u32 *)o == 0x01010101 ? 4 : o[1] == 1 ? 2 : 1);
		return 0;
	}
	if (o[0] == TCP_OPTION_SERVER && o[1] == TCP_OPTION_LEN) {
		w->id = option_value(o);
		return 1;
	}
	w->at = at + o[1];
	return o[1] < 2;
}

static __noinline __u32 walk_options(struct xdp_md *ctx, __u32 at, __u32 len)
{
	struct walk w = {.ctx = ctx, .at = at, .options_end = at + len};

	bpf_loop(TCP_MAX_OPTIONS, next_option, &w, 0);
	return w.id;
}

/* Timestamps are where Linux puts them, and ours stands behind: two looks for nearly
 * every segment. The rest is walked. */
#define TIMESTAMPS bpf_htonl(0x0101080a)
#define SERVER bpf_htons(TCP_OPTION_SERVER << 8 | TCP_OPTION_LEN)
#define TIMESTAMPS_LEN 12

static __always_inline __u32 option_server(struct xdp_md *ctx, const struct packet *p)
{
	const struct tcphdr *tcp = p->l4;
	const __u8 *o = (void *)(tcp + 1);
	__u32 len = tcp->doff * 4 - sizeof(*tcp);

	if (len < TCP_OPTION_LEN)
		return 0;
	if (len == TIMESTAMPS_LEN && (void *)(o + 4) <= p->end && *(__u32 *)o == TIMESTAMPS)
		return 0;
	if (len >= TIMESTAMPS_LEN + TCP_OPTION_LEN && (void *)(o + TIMESTAMPS_LEN + TCP_OPTION_LEN) <= p->end &&
	    *(__u32 *)o == TIMESTAMPS && *(__u16 *)(o + TIMESTAMPS_LEN) == SERVER)
		return option_value(o + TIMESTAMPS_LEN);
	if ((void *)(o + TCP_OPTION_LEN) <= p->end && *(__u16 *)o == SERVER)
		return option_value(o);
	return walk_options(ctx, (void *)o - (void *)(long)ctx->data, len);
}
