/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* What the balancer reads of a frame, before it knows whether a VIP has the port.
 * Each function says PARSED, or the reason for which the frame is left alone;
 * NOT_OURS is the one that is not worth counting. */

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "tables.h"

#define PARSED REASONS
#define NOT_OURS (REASONS + 1)

#define IP_NOT_WHOLE bpf_htons(0x3fff) /* more fragments, or an offset */
#define IP_OFFSET bpf_htons(0x1fff)

/* ICMP errors (RFC 792, RFC 4443 section 2.1), and what stands before the packet
 * that they are about. */
#define UNREACHABLE 3
#define TIME_EXCEEDED 11
#define PARAMETER_PROBLEM 12
#define V6_UNREACHABLE 1
#define V6_PARAMETER_PROBLEM 4

struct icmp_head {
	__u8 type, code;
	__u16 checksum;
	__u32 rest;
};

struct packet {
	__u32 from; /* the interface's index */
	__be32 client[4]; /* IPv4: the first alone. Of an ICMP error: of the flow that it is about */
	__be32 ports;	  /* as they stand in the packet: the client's, then the VIP's */
	struct vip *vip;
	void *l4, *end;
	__u8 proto;
	bool icmp;
	__u32 octets; /* of the frame, by its IP header's word */
};

/* Finalizer of MurmurHash3, 64 bits wide (public domain). */
static __always_inline __u64 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ h >> 33;
}

/* The same on every balancer, whatever their indexes: a flow that comes to another
 * one finds the same slot of the same ring. */
static __always_inline __u64 flow_hash(const struct packet *p)
{
	__u64 first = (__u64)p->client[1] << 32 | p->client[0], second = (__u64)p->client[3] << 32 | p->client[2];

	return mix(first ^ second * 0x9e3779b97f4a7c15ULL ^ (__u64)p->ports << 32);
}

static __always_inline bool may_be_vip(__u32 folded)
{
	__u32 zero = 0, bit = folded * 0x9e3779b1 >> 20;
	struct vip_filter *f = bpf_map_lookup_elem(&filter, &zero);

	return f && f->words[bit / 64 % FILTER_WORDS] >> (bit % 64) & 1;
}

static __always_inline bool for_us(const struct packet *p, const struct ethhdr *eth)
{
	__u32 at = p->from % MAX_LINKS;
	struct link *l = bpf_map_lookup_elem(&links, &at);

	/* What follows the address in the frame is shifted out. Volatile, since the
	 * compiler reads packed structures octet by octet. */
	return l && l->ifindex == p->from && (*(volatile __u64 *)(void *)eth ^ *(volatile __u64 *)l->mac) << 16 == 0;
}

/* Checks that the transport's header is there. Of the packet in an ICMP error as
 * much is there as its sender has cared to repeat: eight octets at least. */
static __always_inline bool has_transport(const struct packet *p)
{
	const struct tcphdr *tcp = p->l4;

	if (p->l4 + 8 > p->end)
		return false;
	if (p->proto == IPPROTO_UDP || p->icmp)
		return true;
	return (void *)(tcp + 1) <= p->end && tcp->doff >= 5;
}

static __always_inline __u32 fold(const __be32 addr[4])
{
	return addr[0] ^ addr[1] ^ addr[2] ^ addr[3];
}

static __always_inline struct front *front_of(__u64 key)
{
	__u32 at = key * 0x9e3779b97f4a7c15ULL >> FRONT_SHIFT;

	return bpf_map_lookup_elem(&fronts, &at);
}

static __always_inline __u64 front_key4(const struct vip4_key *k)
{
	return (__u64)k->proto << 48 | (__u64)k->port << 32 | k->addr;
}

static __always_inline __u64 front_key6(const struct vip6_key *k)
{
	return 1ULL << 56 | (__u64)k->proto << 48 | (__u64)k->port << 32 | fold(k->addr);
}

static __always_inline struct vip *vip4(const struct vip4_key *k)
{
	__u64 key = front_key4(k);
	struct front *f = front_of(key);

	if (!f || !f->key)
		return NULL;
	return f->key == key ? &f->vip : bpf_map_lookup_elem(&vips4, k);
}

static __always_inline struct vip *vip6(const struct vip6_key *k)
{
	__u64 key = front_key6(k);
	struct front *f = front_of(key);

	if (!f || !f->key)
		return NULL;
	if (f->key == key && f->addr[0] == k->addr[0] && f->addr[1] == k->addr[1] && f->addr[2] == k->addr[2] && f->addr[3] == k->addr[3])
		return &f->vip;
	return bpf_map_lookup_elem(&vips6, k);
}

static __always_inline __be32 swapped(__be32 ports)
{
	return ports << 16 | ports >> 16;
}

static __always_inline struct vip *vip_of(const __be32 dst[4], __be16 port, __u8 proto, bool six)
{
	struct vip4_key key4 = {.addr = dst[0], .port = port, .proto = proto};
	struct vip6_key key6 = {.port = port, .proto = proto};

	if (!six)
		return vip4(&key4);
	__builtin_memcpy(key6.addr, dst, sizeof(key6.addr));
	return vip6(&key6);
}

/* What both families have behind their headers. */
static __always_inline __u32 read_transport(struct packet *p, const __be32 dst[4], bool six)
{
	__be32 *ports = p->l4;

	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)
		return OTHER_PROTOCOL;
	if (!has_transport(p))
		return MALFORMED;
	p->ports = p->icmp ? swapped(*ports) : *ports;
	p->vip = vip_of(dst, p->ports >> 16, p->proto, six);
	if (!p->vip)
		p->vip = vip_of(dst, 0, p->proto, six);
	return p->vip ? PARSED : OTHER_PORT;
}

static __always_inline __u32 read_ipv4(const struct ethhdr *eth, struct packet *p, bool effects)
{
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > p->end || !may_be_vip(ip->daddr))
		return NOT_OURS;
	if (effects && !for_us(p, eth))
		return OTHER_HOST;
	if (ip->version != 4 || ip->ihl < 5)
		return MALFORMED;
	if (ip->frag_off & IP_NOT_WHOLE)
		return FRAGMENT;
	p->client[0] = ip->saddr;
	p->proto = ip->protocol;
	p->octets = sizeof(*eth) + bpf_ntohs(ip->tot_len);
	p->l4 = (void *)ip + ip->ihl * 4;
	if (p->proto == IPPROTO_ICMP) {
		struct icmp_head *icmp = p->l4;
		struct iphdr *about = (void *)(icmp + 1);

		if ((void *)(icmp + 1) > p->end)
			return MALFORMED;
		if (icmp->type != UNREACHABLE && icmp->type != TIME_EXCEEDED && icmp->type != PARAMETER_PROBLEM)
			return OTHER_PROTOCOL;
		if ((void *)(about + 1) > p->end || about->version != 4 || about->ihl < 5)
			return MALFORMED;
		if (about->saddr != ip->daddr)
			return OTHER_PROTOCOL;
		if (about->frag_off & IP_OFFSET)
			return FRAGMENT;
		p->icmp = true;
		p->client[0] = about->daddr;
		p->proto = about->protocol;
		p->l4 = (void *)about + about->ihl * 4;
	}
	return read_transport(p, &ip->daddr, false);
}

static __always_inline void copy_address(__be32 to[4], const struct in6_addr *from)
{
	__builtin_memcpy(to, from, sizeof(*from));
}

static __always_inline __u32 read_ipv6(const struct ethhdr *eth, struct packet *p, bool effects)
{
	struct ipv6hdr *ip = (void *)(eth + 1);
	__be32 dst[4];

	if ((void *)(ip + 1) > p->end)
		return NOT_OURS;
	copy_address(dst, &ip->daddr);
	if (!may_be_vip(fold(dst)))
		return NOT_OURS;
	if (effects && !for_us(p, eth))
		return OTHER_HOST;
	if (ip->version != 6)
		return MALFORMED;
	copy_address(p->client, &ip->saddr);
	p->proto = ip->nexthdr;
	p->octets = sizeof(*eth) + sizeof(*ip) + bpf_ntohs(ip->payload_len);
	p->l4 = ip + 1;
	if (p->proto == IPPROTO_ICMPV6) {
		struct icmp_head *icmp = p->l4;
		struct ipv6hdr *about = (void *)(icmp + 1);

		if ((void *)(icmp + 1) > p->end)
			return MALFORMED;
		if (icmp->type < V6_UNREACHABLE || icmp->type > V6_PARAMETER_PROBLEM)
			return OTHER_PROTOCOL;
		if ((void *)(about + 1) > p->end || about->version != 6)
			return MALFORMED;
		if (__builtin_memcmp(&about->saddr, dst, 16))
			return OTHER_PROTOCOL;
		p->icmp = true;
		copy_address(p->client, &about->daddr);
		p->proto = about->nexthdr;
		p->l4 = about + 1;
	}
	if (p->proto == IPPROTO_FRAGMENT)
		return FRAGMENT;
	return read_transport(p, dst, true);
}
