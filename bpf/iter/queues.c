// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* iter/tcp: tells, for the listening sockets it is asked about, how many
 * handshakes are half open, how many connections wait to be accepted, and how
 * many segments found no room.
 *
 * inet_diag gives the half-open connections of an address, not of one socket of a
 * reuseport group, so a generation could not be told from its successor there.
 * The walk begins with the listening sockets: a reader that closes after as many
 * records as it asked for never pays for the established ones. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define TCP_LISTEN 10 /* include/net/tcp_states.h */

/* The few kernel types read here, relocated by name when the program is loaded. */
typedef struct {
	int counter;
} __attribute__((preserve_access_index)) atomic_t;

typedef struct {
	__s64 counter;
} __attribute__((preserve_access_index)) atomic64_t;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct sock_common {
	volatile unsigned char skc_state;
	atomic64_t skc_cookie;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

struct sock {
	atomic_t sk_drops;
	unsigned int sk_ack_backlog;
	unsigned int sk_max_ack_backlog;
} __attribute__((preserve_access_index));

struct inet_sock {
	struct sock sk;
} __attribute__((preserve_access_index));

struct request_sock_queue {
	atomic_t qlen;
} __attribute__((preserve_access_index));

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
} __attribute__((preserve_access_index));

struct tcp_sock {
	struct inet_connection_sock inet_conn;
} __attribute__((preserve_access_index));

/* The sockets asked about, by cookie. A socket has one only after somebody has
 * read SO_COOKIE from it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, __u64);
	__type(value, __u8);
} wanted SEC(".maps");

struct queue {
	__u64 cookie;
	__u32 half_open;
	__u32 to_accept;
	__u32 backlog;
	__u32 dropped;
};

const struct queue *export_queue __attribute__((unused));

SEC("iter/tcp")
int queues(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tcp;
	struct queue q = {};

	if (!skc || skc->skc_state != TCP_LISTEN)
		return 0;
	q.cookie = skc->skc_cookie.counter;
	if (!bpf_map_lookup_elem(&wanted, &q.cookie))
		return 0;
	tcp = (struct tcp_sock *)bpf_skc_to_tcp_sock(skc);
	if (!tcp)
		return 0;
	q.half_open = tcp->inet_conn.icsk_accept_queue.qlen.counter;
	q.to_accept = tcp->inet_conn.icsk_inet.sk.sk_ack_backlog;
	q.backlog = tcp->inet_conn.icsk_inet.sk.sk_max_ack_backlog;
	q.dropped = tcp->inet_conn.icsk_inet.sk.sk_drops.counter;
	bpf_seq_write(ctx->meta->seq, &q, sizeof(q));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
