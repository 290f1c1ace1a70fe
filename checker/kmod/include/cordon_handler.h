/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* What handlers in the kernel may call besides memcpy, memmove, memset, memcmp and strlen. `cordon rewrite --host kernel` knows these names.
 *
 * Everything is copied. A range that is not the handler's own memory ends the call with a report, as a stray access does; everything else that
 * cannot be done is a negative errno, told with each function. Any of them may be called by any event, interrupts off or on. */
#ifndef CORDON_HANDLER_H
#define CORDON_HANDLER_H

#ifdef __cplusplus
extern "C" {
#endif

/* The handler's own memory: a heap, and the area where a call finds its bytes. User space sees both. */
extern char __cordon_heap_start[], __cordon_heap_end[];
extern char __cordon_arg_start[], __cordon_arg_end[];

/* Nanoseconds since some point in the past: CLOCK_MONOTONIC, to within what an NMI may read. */
unsigned long cordon_time_ns(void);

/* The number of the CPU that runs this call to its end. */
unsigned cordon_cpu(void);

/* A line for the kernel's log, at most 120 bytes of it, with the handler's number in front; what is not printable ASCII becomes `?`. Gives the
 * bytes taken. -11 (EAGAIN): the handler has had its lines for now (20 in 5 s), or too many wait. Handlers of users without privileges have no
 * such function: the call ends with a report. */
long cordon_log(const char *text, unsigned long bytes);

/* Packets, in calls by netfilter events; `at` counts from the network header. -61 (ENODATA): not called for a packet, -34 (ERANGE): it has no
 * such bytes. */
long cordon_packet_load(unsigned long at, void *to, unsigned long bytes);
/* Only where the event was attached with CORDON_WRITABLE (-30 EROFS else). What the kernel has measured the packet by cannot be changed (-1 EPERM,
 * and nothing is): version, lengths, fragment fields, protocol, options and extension headers, the length fields of TCP and UDP, checksums,
 * which the kernel keeps right, and what lies behind the network header of other protocols than TCP, UDP and ICMP. A handler may as well change
 * its copy of the packet: if it lets the packet pass, the differences are taken over, those in such fields dropped. -12 (ENOMEM). */
long cordon_packet_store(unsigned long at, const void *from, unsigned long bytes);

/* Maps of the handler, by the number that user space gave them with CORDON_MAP_BIND. Keys and values have the lengths that the map was made
 * with. 0, or -9 (EBADF): no map of that number, -2 (ENOENT): no such key, -17 (EEXIST), -28 (ENOSPC): full, -22 (EINVAL): not for this kind
 * of map, -16 (EBUSY): it was in use for too long, which is rare. */
#define CORDON_ANY 0ul
#define CORDON_NOEXIST 1ul /* only if there is no such key */
#define CORDON_EXIST 2ul   /* only if there is one */
long cordon_map_lookup(unsigned long map, const void *key, void *value);
long cordon_map_update(unsigned long map, const void *key, const void *value, unsigned long flags);
long cordon_map_delete(unsigned long map, const void *key);
/* Adds to the eight-byte number under a key, in one step for all CPUs; a hash map makes the key if need be. */
long cordon_map_add(unsigned long map, const void *key, unsigned long delta);

#ifdef __cplusplus
}
#endif

#endif
