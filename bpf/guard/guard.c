// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* cgroup/setsockopt: a generation holds sockets of a group that others share.
 * Whoever holds one member could take the steering program off the whole group,
 * put another in its place, or leave it. Those options are refused with EPERM on
 * sockets that were put under protection, and on nothing else: the group of
 * processes that it is attached to may be all of the host's. */

#include <linux/bpf.h>
#include <asm/socket.h>
#include <bpf/bpf_helpers.h>

#define SLOTS 256

/* The protected sockets, each with the slot it stands in. A storage lives and
 * ends with its socket, whoever closes it last, and an accepted connection has
 * none of its own. */
struct protected {
	__u32 slot;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct protected);
} sockets SEC(".maps");

enum option {
	OPTION_REUSEPORT,	/* SO_REUSEPORT, 0: no longer of the group */
	OPTION_ATTACH_BPF,	/* SO_ATTACH_BPF: a filter that drops what was steered here */
	OPTION_ATTACH_CBPF,	/* SO_ATTACH_REUSEPORT_CBPF: another program for all members */
	OPTION_ATTACH_EBPF,	/* SO_ATTACH_REUSEPORT_EBPF: the same */
	OPTION_DETACH,		/* SO_DETACH_REUSEPORT_BPF: none for all members */
	OPTIONS,
};

/* Keeps the enum in the BTF, where the Go side reads it. */
const enum option *export_option __attribute__((unused));

struct tally {
	__u64 refused[OPTIONS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct tally);
} refusals SEC(".maps");

/* Goes on to the kernel. Of an option longer than a page the kernel has shown a
 * part and would take the part for the whole; length 0 says "as it was given"
 * (__cgroup_bpf_run_filter_setsockopt, kernel/bpf/cgroup.c). */
static __always_inline int pass(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > 4096)
		ctx->optlen = 0;
	return 1;
}

SEC("cgroup/setsockopt")
int guard(struct bpf_sockopt *ctx)
{
	struct protected *socket;
	enum option option;
	struct tally *tally;
	__u32 slot;

	if (ctx->level != SOL_SOCKET)
		return pass(ctx);
	switch (ctx->optname) {
	case SO_REUSEPORT:
		option = OPTION_REUSEPORT;
		break;
	case SO_ATTACH_BPF:
		option = OPTION_ATTACH_BPF;
		break;
	case SO_ATTACH_REUSEPORT_CBPF:
		option = OPTION_ATTACH_CBPF;
		break;
	case SO_ATTACH_REUSEPORT_EBPF:
		option = OPTION_ATTACH_EBPF;
		break;
	case SO_DETACH_REUSEPORT_BPF:
		option = OPTION_DETACH;
		break;
	default:
		return pass(ctx);
	}
	socket = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	if (!socket)
		return pass(ctx);

	/* Servers set it on whatever socket they get, and it is set already. */
	if (option == OPTION_REUSEPORT) {
		int *value = ctx->optval;

		if ((void *)(value + 1) <= ctx->optval_end && *value)
			return pass(ctx);
	}
	slot = socket->slot;
	tally = bpf_map_lookup_elem(&refusals, &slot);
	if (tally)
		__sync_fetch_and_add(&tally->refused[option], 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
