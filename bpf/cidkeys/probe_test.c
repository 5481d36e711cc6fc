// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* XDP on a made-up packet: the headers that steer QUIC, run by tests alone. The
 * kernel cannot run a sk_reuseport program that way. The packet is a datagram
 * without any header before it; the answer is left in a map. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "quic.h"
#include "server_id.h"

struct answer {
	__u32 form;
	__u32 cid_len;
	__u32 server_id;
	__u8 slot;
	__u8 worker;
	__u8 owned;
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

SEC("xdp")
int probe(struct xdp_md *ctx)
{
	__u8 head[QUIC_HEAD] = {};
	__u64 len = ctx->data_end - ctx->data; /* 64 bits: the verifier loses track of a narrowed copy */
	__u32 zero = 0;
	struct answer *a = bpf_map_lookup_elem(&answers, &zero);
	struct owner owner = {};

	if (!a)
		return XDP_ABORTED;
	if (len > QUIC_HEAD)
		len = QUIC_HEAD;
	barrier_var(len); /* or the compiler folds both bounds into one that the verifier cannot follow */
	if (!len)
		return XDP_DROP;
	if (bpf_xdp_load_bytes(ctx, 0, head, len))
		return XDP_DROP;
	a->form = quic_form(head, len, &a->cid_len);
	if (a->form == QUIC_LONG && a->cid_len == CID_LEN) {
		a->owned = owner_of(head + QUIC_LONG_HEAD, &owner);
	} else if (a->form == QUIC_SHORT && len >= QUIC_SHORT_HEAD + CID_LEN) {
		a->cid_len = CID_LEN;
		a->owned = owner_of(head + QUIC_SHORT_HEAD, &owner);
	}
	a->server_id = owner.server_id;
	a->slot = owner.slot;
	a->worker = owner.worker;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
