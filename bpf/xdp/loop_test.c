// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* Measures another XDP program: calls it many times within one run, each time on a
 * fresh copy of the packet. Tests alone run it. One call in a run would measure the
 * way into the kernel; repeated runs would give the program its own output. */

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define ROUNDS 64
#define LEN 128

struct template {
	__u64 octets[LEN / 8];
	__u32 vary; /* every packet is of another client, of as many as these bits tell apart; IPv4 */
	__u32 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct template);
} templates SEC(".maps");

/* Its body is replaced by the program to be measured. */
__attribute__((noinline)) int measured(struct xdp_md *ctx)
{
	volatile int verdict = XDP_TX;

	return ctx ? verdict : XDP_ABORTED;
}

SEC("xdp")
int loop(struct xdp_md *ctx)
{
	__u32 zero = 0, i;
	struct template *t = bpf_map_lookup_elem(&templates, &zero);
	int verdict = 0;

	if (!t)
		return XDP_ABORTED;
	for (i = 0; i < ROUNDS; i++) {
		void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

		if (data + LEN > end)
			return XDP_ABORTED;
		__builtin_memcpy(data, t->octets, LEN);
		if (t->vary) {
			__u32 client = (t->count + i) & t->vary;

			*(__u16 *)(data + 28) = client >> 16; /* low half of the source address */
			*(__u16 *)(data + 34) = client;	      /* source port */
		}
		verdict = measured(ctx);
	}
	t->count += ROUNDS;
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
