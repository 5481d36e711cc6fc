/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Who owns a connection, read from its QUIC connection ID. quicid writes them
 * and explains them; both sides are tested against quicid/testdata.
 *
 *	 0           1               5      6        7                    17
 *	+-----+-----+---------------+------+--------+---------------------+
 *	|cfg:3|len:5| server_id u32 | slot | worker | random, 10 octets   |
 *	+-----+-----+---------------+------+--------+---------------------+
 *
 * cfg 0 is in clear; with cfg 1 to 6 what follows the first octet is one block of
 * AES-128. A decoded owner is a claim: any client can write one. */

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "aes.h"

#define CID_LEN 17
#define CID_CONFIGS 8

struct owner {
	__u32 server_id; /* 0: nobody */
	__u8 slot;
	__u8 worker;
};

/* The key of each config. A value is not replaced while its config is in use
 * (quicid.Keys on rotation), so a reader need not see it whole at once. */
struct cid_key {
	__u32 set;
	__u32 round_keys[AES_ROUND_KEYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CID_CONFIGS);
	__type(key, __u32);
	__type(value, struct cid_key);
} cid_keys SEC(".maps");

/* In a packet words may be read at any octet. In a program's own memory the verifier
 * wants them in their places. */
static __always_inline __u32 cid_word(const __u8 *cid)
{
#ifdef CID_IN_PACKET
	return bpf_ntohl(*(const volatile __u32 *)cid);
#else
	return (__u32)cid[0] << 24 | (__u32)cid[1] << 16 | (__u32)cid[2] << 8 | cid[3];
#endif
}

/* Reads the owner from CID_LEN octets. false: of another length by its own word,
 * not routable, without a server, or encrypted under a key that is not there. */
static __always_inline bool owner_of(const __u8 cid[CID_LEN], struct owner *o)
{
	__u32 config = cid[0] >> 5, words[2];
	struct cid_key *key;

	o->server_id = 0;
	if ((cid[0] & 0x1f) != CID_LEN - 1 || config == CID_CONFIGS - 1)
		return false;
	if (config == 0) {
		o->server_id = cid_word(cid + 1);
		o->slot = cid[5];
		o->worker = cid[6];
		return o->server_id != 0;
	}
	key = bpf_map_lookup_elem(&cid_keys, &config);
	if (!key || !key->set)
		return false;
	aes_decrypt_half(key->round_keys, cid_word(cid + 1), cid_word(cid + 5), cid_word(cid + 9), cid_word(cid + 13), words);
	o->server_id = words[0];
	o->slot = words[1] >> 24;
	o->worker = words[1] >> 16;
	return o->server_id != 0;
}
