// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* sockops: the number of a node in a TCP option, so that whoever routes a
 * connection's segments needs no memory of it.
 *
 *	 0      1      2                  6
 *	+------+------+------------------+
 *	| kind | 6    | server_id, u32   |
 *	+------+------+------------------+
 *
 * The server's node writes kind 0xB6 into its SYN-ACK and nothing more. The
 * client's node keeps the four octets as they came and writes them as kind 0xB7
 * into each later segment. A peer that does not know the options skips them
 * (RFC 9293, 3.1), and one whose options do not come through is as without them.
 *
 * When in doubt nothing is written. Callbacks for each segment are asked for by
 * the two kinds of sockets that write: marked listeners, and connections that
 * have learned a number. */

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define OPTION_ANSWER 0xB6
#define OPTION_ECHO 0xB7
#define OPTION_LEN 6

#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* The number as it stands on the wire: the byte order is the loader's matter. */
const volatile __u32 wire_id;

/* The network namespace whose listeners have the number. A cgroup may hold the
 * supervisors of several, and a half-open connection does not tell its listener. */
const volatile __u64 netns;

enum event {
	EVENT_ANSWERED,		/* a SYN-ACK that carries the number */
	EVENT_ANSWER_FULL,	/* a SYN-ACK without, for want of room */
	EVENT_LEARNED,		/* a connection whose server told its number */
	EVENT_UNTOLD,		/* a connection whose server told none */
	EVENT_ECHOED,		/* headers that carry the server's number: a train of segments has one */
	EVENT_ECHO_FULL,	/* headers without, for want of room */
	EVENTS,
};

/* Keeps the enum in the BTF, where the Go side reads it. */
const enum event *export_event __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} events SEC(".maps");

/* Listening sockets that tell the number. A connection made of one begins with
 * the mark, and with the callbacks that its listener had asked for. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u32);
} tellers SEC(".maps");

/* What a connection's server has told, as it stood on the wire. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} told SEC(".maps");

struct option {
	__u8 kind;
	__u8 len;
	__u32 id;
} __attribute__((packed));

static __always_inline void count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&events, &event);

	if (n)
		(*n)++;
}

static __always_inline void ask_for_headers(struct bpf_sock_ops *ctx, bool on)
{
	__u32 flags = ctx->bpf_sock_ops_cb_flags;

	flags &= ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	if (on)
		flags |= BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
	bpf_sock_ops_cb_flags_set(ctx, flags);
}

static __always_inline bool is_syn_ack(struct bpf_sock_ops *ctx)
{
	return (ctx->skb_tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* The kernel asks how much room is wanted, then to write into it. */
static __always_inline void reserve(struct bpf_sock_ops *ctx, enum event full)
{
	if (bpf_reserve_hdr_opt(ctx, OPTION_LEN, 0))
		count(full);
}

static __always_inline void write(struct bpf_sock_ops *ctx, __u8 kind, __u32 id, enum event done)
{
	struct option o = { .kind = kind, .len = OPTION_LEN, .id = id };

	if (!bpf_store_hdr_opt(ctx, &o, sizeof(o), 0))
		count(done);
}

/* Attached to the cgroup in which listening sockets are made. */
SEC("sockops")
int server(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		if (is_syn_ack(ctx) && bpf_get_netns_cookie(ctx) == netns)
			reserve(ctx, EVENT_ANSWER_FULL);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		if (is_syn_ack(ctx) && bpf_get_netns_cookie(ctx) == netns)
			write(ctx, OPTION_ANSWER, wire_id, EVENT_ANSWERED);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sk = ctx->sk;
		if (sk && bpf_sk_storage_get(&tellers, sk, 0, 0))
			ask_for_headers(ctx, true);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		/* The client has been told. Before its first octet out. */
		sk = ctx->sk;
		if (sk && !bpf_sk_storage_delete(&tellers, sk))
			ask_for_headers(ctx, false);
		break;
	}
	return 1;
}

/* Attached to the cgroups whose connections may be routed by the number. */
SEC("sockops")
int client(struct bpf_sock_ops *ctx)
{
	struct option o = { .kind = OPTION_ANSWER };
	struct bpf_sock *sk;
	__u32 *id;

	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		break;
	default:
		return 1;
	}
	sk = ctx->sk;
	if (!sk)
		return 1; /* a half-open connection at a listener: none of ours */

	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		/* The SYN-ACK lies here. A longer option of the kind is no number. */
		if (bpf_load_hdr_opt(ctx, &o, sizeof(o), 0) != OPTION_LEN || !o.id) {
			count(EVENT_UNTOLD);
			return 1;
		}
		__u32 learned = o.id;
		if (!bpf_sk_storage_get(&told, sk, &learned, BPF_SK_STORAGE_GET_F_CREATE))
			return 1;
		ask_for_headers(ctx, true);
		count(EVENT_LEARNED);
		return 1;
	}
	id = bpf_sk_storage_get(&told, sk, 0, 0);
	if (!id)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_HDR_OPT_LEN_CB)
		reserve(ctx, EVENT_ECHO_FULL);
	else
		write(ctx, OPTION_ECHO, *id, EVENT_ECHOED);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
