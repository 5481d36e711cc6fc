/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Where the destination connection ID stands in a QUIC packet. Only what RFC 8999
 * promises of every version is read: the bit that tells long headers from short
 * ones, and in long ones the version and the length of the ID. Types of packets
 * are not, since version 2 numbers them anew (RFC 9369, section 3.2).
 *
 *	long   1 type | version u32 | length u8 | ID, 0 to 20 octets | ...
 *	short  0 type | ID, of the length that its writer knows | ... */

#include <stdbool.h>
#include <linux/types.h>

#define QUIC_MAX_CID 20	  /* version 1; RFC 8999 allows 255, and who uses them is not ours */
#define QUIC_MIN_FIRST_CID 8 /* that a client begins with (RFC 9000, section 7.2) */
#define QUIC_LONG_HEAD 6  /* octets before the ID in a long header */
#define QUIC_SHORT_HEAD 1 /* and in a short one */

/* What a reader needs of a packet: as many octets as it has, up to these. */
#define QUIC_HEAD (QUIC_LONG_HEAD + QUIC_MAX_CID)

enum quic_form {
	QUIC_NONE,  /* empty, or cut off before its ID is whole */
	QUIC_LONG,
	QUIC_SHORT, /* anything else: short headers have no mark of their own */
};

/* Tells what the len octets of a datagram's start are, and for a long header how
 * long its ID is, which begins at head[QUIC_LONG_HEAD]; QUIC_MAX_CID + 1 stands for
 * longer. Of a short header the ID begins at head[QUIC_SHORT_HEAD], and the
 * caller knows its length and has checked that the datagram has as much. */
static __always_inline enum quic_form quic_form(const __u8 head[QUIC_HEAD], __u32 len, __u32 *cid_len)
{
	*cid_len = 0;
	if (len < QUIC_SHORT_HEAD)
		return QUIC_NONE;
	if (!(head[0] & 0x80))
		return QUIC_SHORT;
	if (len < QUIC_LONG_HEAD)
		return QUIC_NONE;
	*cid_len = head[5];
	if (*cid_len > QUIC_MAX_CID) {
		*cid_len = QUIC_MAX_CID + 1;
		return QUIC_LONG;
	}
	return len < QUIC_LONG_HEAD + *cid_len ? QUIC_NONE : QUIC_LONG;
}
