/* Calls what the kernel offers, as the guest's tests ask for it. Results that a test wants to see lie in the heap. */
#include "cordon_handler.h"

typedef unsigned char u8;
typedef unsigned long u64;

#define HEAP ((volatile u64 *)__cordon_heap_start)

__attribute__((constructor)) static void begin(void) { HEAP[30] = 4711; }

long host_time(void)
{
	u64 first = cordon_time_ns(), second = cordon_time_ns();

	HEAP[0] = first;
	HEAP[1] = second;
	HEAP[2] = cordon_cpu();
	return second >= first;
}

/* Busy for a while; one more call. */
long host_work(u64 rounds)
{
	for (volatile u64 i = 0; i < rounds; i++)
		;
	return (long)++HEAP[3];
}

long host_log(const char *text, u64 bytes) { return cordon_log(text, bytes); }

long host_flood(const char *text, u64 bytes, u64 times)
{
	long taken = 0;

	while (times--)
		taken += cordon_log(text, bytes) >= 0;
	return taken;
}

long host_load(u64 at, void *to, u64 bytes) { return cordon_packet_load(at, to, bytes); }

long map_lookup(u64 map, const void *key, void *value) { return cordon_map_lookup(map, key, value); }
long map_update(u64 map, const void *key, const void *value, u64 flags) { return cordon_map_update(map, key, value, flags); }
long map_delete(u64 map, const void *key) { return cordon_map_delete(map, key); }

/* Adds 1 to a number of map 0, `times` times; gives how often that was done. */
long map_count(u64 times, u64 number)
{
	unsigned key = (unsigned)number;
	long done = 0;

	while (times--)
		done += cordon_map_add(0, &key, 1) == 0;
	return done;
}

/* For every event: one more at key 0 of map 0, and a line. */
long on_event(u64 count, u64 cpu, u64 process, u64 time)
{
	static const char text[] = "seen";
	unsigned key = 0;

	(void)count, (void)cpu, (void)process, (void)time;
	cordon_map_add(0, &key, 1);
	cordon_log(text, sizeof(text) - 1);
	return 1;
}

/* Compares what is loaded with what was copied, from both ends; heap: packets, differences. */
long on_packet(const u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	u8 *to = (u8 *)HEAP + 64;
	u64 at, bad = 0;

	(void)hook;
	for (at = 0; at + 7 <= bytes; at += 7) {
		bad += cordon_packet_load(at, to, 7) != 0;
		for (u64 i = 0; i < 7; i++)
			bad += to[i] != packet[at + i];
	}
	bad += cordon_packet_load(whole - 1, to, 1) != 0;
	bad += cordon_packet_load(whole - 1, to, 2) != -34 || cordon_packet_load(whole, to, 1) != -34;
	bad += cordon_packet_load(-1ul, to, 2) != -34 || cordon_packet_load(0, to, -1ul) != -34 || cordon_packet_load(1, to, -1ul) != -34;
	bad += cordon_packet_load(whole, to, 0) != 0;
	HEAP[0]++;
	HEAP[1] += bad;
	return 1;
}

/* A range that ends behind the window. */
long on_packet_outside(const u8 *packet, u64 bytes, u64 hook, u64 whole)
{
	(void)packet, (void)bytes, (void)hook, (void)whole;
	return cordon_packet_load(0, (void *)0xfffffffcul, 8);
}
