/* Changes packets, honestly and not. Heap: what stores gave, and a random state. */
#include "cordon_handler.h"

typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long u64;

#define HEAP ((volatile u64 *)__cordon_heap_start)
enum { TCP = 6, UDP = 17, ICMP = 1 };
enum { FROM = 9990, TO = 9991, BLOCKED = 9992 };

static int is_ipv6(const u8 *packet) { return packet[0] >> 4 == 6; }
/* Linux sends itself IPv6 packets of more than 64 KiB, with a jumbo option in front. */
static int is_jumbo(const u8 *packet) { return is_ipv6(packet) && packet[6] == 0; }
static u64 transport(const u8 *packet) { return is_ipv6(packet) ? is_jumbo(packet) ? 48 : 40 : (u64)(packet[0] & 15) * 4; }
static u8 protocol(const u8 *packet) { return packet[is_ipv6(packet) ? is_jumbo(packet) ? 40 : 6 : 9]; }
static u64 port(const u8 *packet) { return (u64)packet[transport(packet) + 2] << 8 | packet[transport(packet) + 3]; }

static u64 payload(const u8 *packet)
{
	u64 at = transport(packet);

	return at + (protocol(packet) == TCP ? (u64)(packet[at + 12] >> 4) * 4 : 8);
}

/* Upper case for what goes to a port, and UDP and pings elsewhere: another port, another time to live, another source. */
long upper(u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	u64 at = transport(packet);

	(void)hook, (void)whole;
	if (protocol(packet) != ICMP && port(packet) != FROM)
		return 1;
	for (u64 i = payload(packet); i < bytes; i++)
		if (packet[i] >= 'a' && packet[i] <= 'z')
			packet[i] -= 'a' - 'A';
	if (protocol(packet) == UDP) {
		packet[at + 2] = TO >> 8;
		packet[at + 3] = TO & 255;
		packet[is_ipv6(packet) ? 7 : 8] = 7;
		if (!is_ipv6(packet))
			packet[15] = 77;
	}
	return 1;
}

/* The same for UDP by stores, at odd places; the heap gets their results. */
long stores(u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	static const u8 to[2] = { TO >> 8, TO & 255 };
	u64 at = transport(packet);

	(void)hook;
	if (protocol(packet) != UDP || port(packet) != FROM)
		return 1;
	for (u64 i = payload(packet); i < bytes; i += 3) {
		u8 part[3];
		u64 length = bytes - i < 3 ? bytes - i : 3;

		HEAP[0] |= (u64)cordon_packet_load(i, part, length);
		for (u64 k = 0; k < length; k++)
			if (part[k] >= 'a' && part[k] <= 'z')
				part[k] -= 'a' - 'A';
		HEAP[0] |= (u64)cordon_packet_store(i, part, length);
	}
	HEAP[0] |= (u64)cordon_packet_store(at + 2, to, 2);
	/* What cannot be: each of these must change nothing. */
	u64 number = 1;
	u8 bad[4] = { 0xa5, 0xa5, 0xa5, 0xa5 };
	HEAP[number++] = (u64)cordon_packet_store(0, bad, 1);
	HEAP[number++] = (u64)cordon_packet_store(is_ipv6(packet) ? 4 : 2, bad, 2);
	HEAP[number++] = (u64)cordon_packet_store(is_ipv6(packet) ? 6 : 9, bad, 1);
	HEAP[number++] = (u64)cordon_packet_store(at + 4, bad, 2);
	HEAP[number++] = (u64)cordon_packet_store(at + 6, bad, 2);
	HEAP[number++] = (u64)cordon_packet_store(0, packet + 1, 40);
	HEAP[number++] = (u64)cordon_packet_store(whole, bad, 1);
	HEAP[number++] = (u64)cordon_packet_store(whole - 1, bad, 2);
	HEAP[number++] = (u64)cordon_packet_store(-1ul, bad, 2);
	HEAP[number++] = (u64)cordon_packet_store(1, bad, -1ul);
	return 1;
}

long store_outside(u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	(void)bytes, (void)hook, (void)whole;
	return protocol(packet) != UDP || port(packet) != FROM || cordon_packet_store(20, (void *)16, 8);
}

/* All ones, in the copy. */
long ones(u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	(void)hook, (void)whole;
	for (u64 i = 0; i < bytes; i++)
		packet[i] = 0xff;
	return 1;
}

static u32 random(void)
{
	u64 x = HEAP[20] ? HEAP[20] : 88172645463325252ul;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	HEAP[20] = x;
	return (u32)(x >> 11);
}

/* Some bytes of the first 80, by the copy or by a store. */
long noise(u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	(void)hook;
	for (u32 i = random() % 6; i; i--) {
		u8 byte = (u8)random();
		u64 at = random() % 80;

		if (random() % 2)
			cordon_packet_store(at % whole, &byte, 1);
		else if (at < bytes)
			packet[at] = byte;
	}
	HEAP[21]++;
	return random() % 16;
}

/* Drops TCP to one port, counts the rest. */
long tcp_filter(const u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	(void)hook, (void)whole;
	if (bytes < transport(packet) + 20 || protocol(packet) != TCP)
		return 1;
	HEAP[0]++;
	if (port(packet) != BLOCKED)
		return 1;
	HEAP[1]++;
	return 0;
}
