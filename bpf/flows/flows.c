// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* sockops and two tracepoints: counts the flows of each generation, listener by
 * listener: established, answered, closed, reset.
 *
 * A run of the steering program is no flow: a handshake answered with a SYN
 * cookie takes two runs, a stray segment one. A flow is a socket that the kernel
 * has made of a finished handshake. Whose it is stands on the listening socket:
 * the kernel copies the mark to every connection that it makes of it.
 *
 * What the programs see twice (two supervisors' programs, for a moment) they
 * count once: each flow remembers what has been counted of it. A socket without
 * a mark is somebody else's, and nothing is done with it. */

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

enum fact {
	FACT_ESTABLISHED,	/* finished handshakes */
	FACT_ANSWERED,		/* the client has acknowledged octets of an answer */
	FACT_CLOSED,		/* over, with or without a reset */
	FACT_UNANSWERED,	/* over without an octet of an answer: it had asked, or we reset it; not where the client did */
	FACT_FAILED,		/* unanswered, reset by its owner, or open when that ended */
	FACT_RESET_QUEUED,	/* reset by us before anybody had accepted it */
	FACT_RESET_SENT,	/* reset by us, accepted */
	FACT_RESET_UNANSWERED,	/* reset by who had accepted it, before any octet of an answer */
	FACT_RESET_RECEIVED,	/* reset by the client */
	FACT_OPEN_AT_EXIT,	/* open when the process that had accepted it ended */
	FACTS,
};

/* Keeps the enum in the BTF, where the Go side reads it. */
const enum fact *export_fact __attribute__((unused));

/* Whose a flow is, and what has been counted of it: bit n stands for fact n. */
struct mark {
	__u64 generation;
	__u32 listener;
	__u32 counted;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

struct account {
	__u64 generation;
	__u32 listener;
	__u32 pad;
};

struct tally {
	__u64 flows[FACTS];
};

/* The supervisor opens an account before the first flow and closes it when the
 * generation has gone; what has no account is not counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct account);
	__type(value, struct tally);
} accounts SEC(".maps");

/* The few kernel types read here, relocated by name when the program is loaded. */
struct socket;

struct sock_common {
	unsigned long skc_flags;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 data_segs_out;
} __attribute__((preserve_access_index));

struct task_struct {
	unsigned int flags;
} __attribute__((preserve_access_index));

#define SOCK_DEAD (1UL << 0)	/* include/net/sock.h: nobody has it any more */
#define PF_EXITING 0x4		/* include/linux/sched.h */

static __always_inline void count(struct mark *m, enum fact fact)
{
	struct account of = { .generation = m->generation, .listener = m->listener };
	struct tally *t;

	if (m->counted & (1U << fact))
		return;
	m->counted |= 1U << fact;
	t = bpf_map_lookup_elem(&accounts, &of);
	if (t)
		t->flows[fact]++;
}

/* The listening socket has a mark too, and is no flow. */
static __always_inline bool is_flow(struct mark *m)
{
	return m && m->counted & (1U << FACT_ESTABLISHED);
}

static __always_inline bool has(struct mark *m, enum fact fact)
{
	return m->counted & (1U << fact);
}

/* The process has closed it or ended; a timer of the kernel's has not. The numbers
 * of the reasons are those of the running kernel. */
enum sk_rst_reason {
	SK_RST_REASON_TCP_ABORT_ON_MEMORY = 13,
	SK_RST_REASON_TCP_KEEPALIVE_TIMEOUT = 15,
};

static __always_inline bool by_its_owner(int reason)
{
	return reason != bpf_core_enum_value(enum sk_rst_reason, SK_RST_REASON_TCP_ABORT_ON_MEMORY) &&
	       reason != bpf_core_enum_value(enum sk_rst_reason, SK_RST_REASON_TCP_KEEPALIVE_TIMEOUT);
}

static __always_inline bool exiting(void)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();

	return task->flags & PF_EXITING;
}

static __always_inline void flags(struct bpf_sock_ops *ctx, __u32 set, __u32 clear)
{
	bpf_sock_ops_cb_flags_set(ctx, (ctx->bpf_sock_ops_cb_flags | set) & ~clear);
}

SEC("sockops")
int flows(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct mark *m;

	switch (ctx->op) {
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_RTT_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}
	sk = ctx->sk;
	if (!sk)
		return 1;
	m = bpf_sk_storage_get(&marks, sk, 0, 0);
	if (!m)
		return 1;

	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		count(m, FACT_ESTABLISHED);
		flags(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG, 0);
		return 1;
	}
	if (!is_flow(m))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_RTT_CB) {
		/* The client acknowledged something: the first time, an answer. */
		if (ctx->data_segs_out) {
			count(m, FACT_ANSWERED);
			flags(ctx, 0, BPF_SOCK_OPS_RTT_CB_FLAG);
		}
		return 1;
	}
	switch (ctx->args[1]) {
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_LAST_ACK:
		/* Only a process brings a socket there, and this one is ending. */
		if (exiting()) {
			count(m, FACT_OPEN_AT_EXIT);
			count(m, FACT_FAILED);
		}
		break;
	case BPF_TCP_CLOSE:
		count(m, FACT_CLOSED);
		if (ctx->data_segs_in && !ctx->data_segs_out && !has(m, FACT_RESET_RECEIVED)) {
			count(m, FACT_UNANSWERED);
			count(m, FACT_FAILED);
		}
		break;
	}
	return 1;
}

SEC("tp_btf/tcp_send_reset")
int reset_sent(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct tcp_sock *tcp;
	struct mark *m;

	if (!sk)
		return 0;
	m = bpf_sk_storage_get(&marks, sk, 0, 0);
	if (!is_flow(m))
		return 0;
	/* In the accept queue it has no file yet, and nobody has closed it. */
	if (!sk->sk_socket && !(sk->__sk_common.skc_flags & SOCK_DEAD)) {
		count(m, FACT_RESET_QUEUED);
		return 0;
	}
	count(m, FACT_RESET_SENT);
	if (by_its_owner((int)ctx[2])) {
		count(m, FACT_FAILED);
		tcp = (void *)bpf_skc_to_tcp_sock(sk);
		if (tcp && !tcp->data_segs_out) {
			count(m, FACT_RESET_UNANSWERED);
			count(m, FACT_UNANSWERED);
		}
	}
	if (sk->sk_socket && exiting())
		count(m, FACT_OPEN_AT_EXIT);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int reset_received(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct mark *m = bpf_sk_storage_get(&marks, sk, 0, 0);

	if (is_flow(m))
		count(m, FACT_RESET_RECEIVED);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
