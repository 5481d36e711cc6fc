/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The server that a connection ID of Katran's forms names, versions 1 to 3: the
 * upper two bits of the first octet say which, and how wide the server's number is.
 *
 *	version 1   01 | id u16 | ...       6 bits of it stand in the first octet
 *	version 2   10.. | id u24 | ...
 *	version 3   11.. | id u32 | ... */

#include <linux/types.h>

#define KATRAN_MIN_CID 8 /* octets of the shortest ID that has a server in a long header */

/* Gives 0 where there is none. */
static __always_inline __u32 katran_server(const __u8 cid[5])
{
	switch (cid[0] >> 6) {
	case 1:
		return (__u32)(cid[0] & 0x3f) << 10 | (__u32)cid[1] << 2 | cid[2] >> 6;
	case 2:
		return (__u32)cid[1] << 16 | (__u32)cid[2] << 8 | cid[3];
	case 3:
		return (__u32)cid[1] << 24 | (__u32)cid[2] << 16 | (__u32)cid[3] << 8 | cid[4];
	}
	return 0;
}

/* Says whether a long header's ID can be a server's: in every packet before the
 * handshake's the client has made it up, and three of four such IDs look like
 * Katran's. Types are numbered by version (RFC 9000 section 17.2, RFC 9369
 * section 3.2); of other versions nothing is known. */
static __always_inline int katran_long(const __u8 head[5])
{
	__u32 version = (__u32)head[1] << 24 | (__u32)head[2] << 16 | (__u32)head[3] << 8 | head[4];
	__u32 type = (head[0] >> 4) & 3;

	return (version == 1 && type == 2) || (version == 0x6b3343cf && type == 3);
}
