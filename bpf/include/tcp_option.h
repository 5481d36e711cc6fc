/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The TCP option that names a segment's server, in every segment of a client's
 * after its SYN. The kinds are Katran's.
 *
 *	+-----------+----------+---------------+
 *	| kind 0xb7 | length 6 | server_id u32 |	network byte order, unless told otherwise
 *	+-----------+----------+---------------+ */

#include <linux/types.h>

#define TCP_OPTION_SERVER 0xb7	 /* from the client, in every segment */
#define TCP_OPTION_ANNOUNCE 0xb6 /* from the server, in its SYN-ACK */
#define TCP_OPTION_LEN 6
#define TCP_MAX_OPTIONS 40 /* octets of them in a header */
