/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The balancer's maps. All but the constants are pinned: a later program finds
 * them as they are, so fields are added, never moved; another shape is another
 * version of the pin directory (layout, in xdp.go). */

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define MAX_VIPS 4096
#define MAX_REALS 4096 /* index 0 is nobody */
#define MAX_RINGS 8192
#define MAX_LINKS 256
#define MAX_DEVICES 1024

/* A loader may change it. */
#define DEFAULT_RING 65537

/* Settings of this load. */
const volatile __u32 ring_size = DEFAULT_RING;
const volatile __u32 new_flows_per_cpu = 125000; /* in a second; beyond, the table learns nothing */
const volatile bool host_order = false;		  /* the TCP option is written so by this fleet */
const volatile bool table_first = false;	  /* for measurements: decision 026 */

/* One bit for the destination address of every VIP. Most of a host's traffic ends
 * at this look. */
#define FILTER_WORDS 64

struct vip_filter {
	__u64 words[FILTER_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vip_filter);
} filter SEC(".maps");

/* The interfaces served, by their index's remainder: a frame for another host's
 * address, which a bridge floods, is not ours to forward a second time. */
struct link {
	__u8 mac[6];
	__u8 pad[2]; /* zeros: the address is compared as one word */
	__u32 ifindex;
	__u32 pad2;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LINKS);
	__type(key, __u32);
	__type(value, struct link);
} links SEC(".maps");

/* Port 0 is every port that has no VIP of its own. Two maps, since the short key
 * is the quicker one. */
struct vip4_key {
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct vip6_key {
	__be32 addr[4];
	__be16 port;
	__u8 proto;
	__u8 pad;
};

enum vip_flag {
	VIP_QUIC = 1,	/* read connection IDs */
	VIP_KATRAN = 2, /* in Katran's forms too */
};

struct vip {
	__u32 flags;
	__u32 ring;
	__u32 number; /* of its counters; given to another when it is gone */
	__u32 serial; /* in its flows' tags; never given again */
};

/* The same VIPs once more, each at a place that is computed of its key: that
 * spares the call into the kernel and its hash. A place that several VIPs want has
 * one of them, and the hash has the others. One that is empty is wanted by none. */
#define FRONTS 4096
#define FRONT_SHIFT 52

struct front {
	__u64 key;	/* family, protocol, port, folded address. 0: nobody's; all ones: it changes */
	__be32 addr[4]; /* IPv6 */
	struct vip vip;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRONTS);
	__type(key, __u32);
	__type(value, struct front);
} fronts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct vip4_key);
	__type(value, struct vip);
} vips4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct vip6_key);
	__type(value, struct vip);
} vips6 SEC(".maps");

enum real_flag {
	REAL_UP = 1,	   /* it can be sent to; without this bit nothing is */
	REAL_DRAINING = 2, /* it keeps what it has; no connection opens there by the table */
	REAL_NEIGHBOUR = 4, /* the MAC addresses and the interface are known */
	REAL_LOCAL = 8,	   /* this host: left to its own stack */
	REAL_IPV6 = 16,
};

/* The kernel copies values in steps of 8 octets, so that a reader never sees half
 * a MAC address. */
struct real {
	__u8 mac[6];	/* its own */
	__u8 source[6]; /* of the interface */
	__u32 ifindex;
	__u32 flags;
	__u32 epoch; /* another one for each node that has had this index */
	__u32 pad;
	__be32 addr[4]; /* IPv4: the first alone */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_REALS);
	__type(key, __u32);
	__type(value, struct real);
} reals SEC(".maps");

/* server_id to the index of its real. Small ones are their own index. */
#define SMALL_IDS 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SMALL_IDS);
	__type(key, __u32);
	__type(value, __u32);
} servers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_REALS * 4);
	__type(key, __u32);
	__type(value, __u32);
} large_servers SEC(".maps");

/* Rings are replaced whole: a packet sees the old one or the new one. Four slots in
 * an element, since the kernel's elements are never smaller than eight octets. */
#define SLOTS 4

struct slots {
	__u16 reals[SLOTS];
};

struct ring {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DEFAULT_RING / SLOTS + 1);
	__type(key, __u32);
	__uint(value_size, sizeof(struct slots));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_RINGS);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

/* Where a frame may leave by another interface than it came in. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

/* What became of a packet. Each one for a VIP counts once in the first block; one
 * more for each thing that happened beside. Those of the last block have no VIP
 * and count at number 0. */
enum reason {
	BY_CID,
	BY_OPTION,
	BY_TABLE,
	BY_RING,
	BY_ICMP, /* an error about a flow, to the flow's real */
	NO_REAL, /* the ring names nobody, or one that is down: dropped */

	UNKNOWN_ID, /* an id that no server has */
	DEAD_ID,    /* an id of a server that is down */
	UNLEARNED,  /* by ring, and the table was not told: too many new flows, or two at once for a place */
	LOCAL,	    /* left to this host's own stack */
	NO_NEIGHBOUR,
	NO_ROUTE, /* also: not on a link of ours */
	NO_FORWARDING,
	TOO_LONG,
	NO_DEVICE,
	FIB, /* sent by the routing table, since the MAC address was not there */

	OTHER_PORT,
	OTHER_PROTOCOL, /* not TCP, UDP or an ICMP error; extension headers too */
	FRAGMENT,
	MALFORMED,
	OTHER_HOST, /* the frame is for another MAC address */
	REASONS,
};

struct tally {
	__u64 packets[REASONS];
	__u64 octets;	    /* of frames sent or left to this host */
	__u64 local_octets; /* of these left to this host */
};

struct real_tally {
	__u64 packets;
	__u64 octets;
	__u64 flows; /* that the ring gave it */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_VIPS * 2 + 1); /* of both families, and number 0 */
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REALS);
	__type(key, __u32);
	__type(value, struct real_tally);
} real_tallies SEC(".maps");

/* What the program that only explains has found. */
struct answer {
	__u64 beside; /* a bit for each reason */
	__u32 vip;    /* number */
	__u32 real;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

/* Keeps them in the BTF, where the Go side reads them. */
const enum reason *export_reason __attribute__((unused));
const enum vip_flag *export_vip_flag __attribute__((unused));
const enum real_flag *export_real_flag __attribute__((unused));
