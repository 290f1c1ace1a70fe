/* Drops UDP packets to one port and counts what it sees: the first words of the heap are the port (network order), packets, drops. */
typedef unsigned char u8;
typedef unsigned long u64;

extern volatile u64 __cordon_heap_start[];

long port_filter(const u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	volatile u64 *shared = __cordon_heap_start;
	u64 header = (u64)(packet[0] & 15) * 4;

	(void)hook, (void)whole;
	shared[1]++;
	if (bytes < header + 8 || packet[0] >> 4 != 4 || packet[9] != 17)
		return 1;
	if ((u64)packet[header + 2] << 8 != (shared[0] & 0xff00) || packet[header + 3] != (shared[0] & 0xff))
		return 1;
	shared[2]++;
	return 0;
}

/* The same, but it never answers for that port. */
long port_spin(const u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	if (port_filter(packet, bytes, hook, whole))
		return 1;
	for (;;)
		__asm__ volatile("");
}
