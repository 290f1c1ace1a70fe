// SPDX-License-Identifier: GPL-2.0
/* Packets of netfilter events: a copy for the handler, more of the bytes on demand, and changes. Offsets count from the network header.
 *
 * The kernel has measured a packet before a hook sees it and relies on that behind the hook. So what it measured by cannot be changed: version
 * and lengths, fragment fields, protocol, options and extension headers, the length fields of TCP and UDP, and nothing behind the network
 * header where that is another protocol, a later fragment or a tunnel's. Checksums are kept right here: IPv4's own anew, those of TCP, UDP and
 * ICMP by the difference; where a device or the kernel is to fill one in later, that is left to it. Routes are not looked up again. */
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/netfilter.h>
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/checksum.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include "internal.h"

#define CHUNK 64
#define FIELDS 8

/* What may not be changed, and where the checksum of the transport header is. */
struct shape {
	u32 transport;	 /* where that header begins */
	u32 sum;	 /* its checksum; 0 = none */
	u32 source, end; /* the addresses */
	bool pseudo;	 /* the checksum covers the addresses */
	bool optional;	 /* 0 stands for no checksum */
	u32 open;	 /* bytes that may be changed at all */
	u32 fields;
	struct {
		u32 at, end;
	} fixed[FIELDS];
};

static void fix(struct shape *shape, u32 at, u32 end)
{
	if (at < end && !WARN_ON_ONCE(shape->fields == FIELDS)) {
		shape->fixed[shape->fields].at = at;
		shape->fixed[shape->fields++].end = end;
	}
}

/* The transport header, if it is one of those that are known and all there. */
static void measure_transport(const struct sk_buff *packet, struct shape *shape, u8 protocol)
{
	u32 at = shape->transport, length;

	switch (protocol) {
	case IPPROTO_TCP:
		length = sizeof(struct tcphdr);
		shape->sum = at + offsetof(struct tcphdr, check);
		fix(shape, at + 12, at + 13);
		break;
	case IPPROTO_UDP:
		length = sizeof(struct udphdr);
		shape->sum = at + offsetof(struct udphdr, check);
		shape->optional = true;
		fix(shape, at + 4, at + 6);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		length = sizeof(struct icmphdr);
		shape->sum = at + offsetof(struct icmphdr, checksum);
		break;
	default:
		return;
	}
	shape->pseudo = protocol != IPPROTO_ICMP;
	if (packet->len < at + length) {
		shape->sum = 0;
		return;
	}
	shape->open = packet->len;
	fix(shape, shape->sum, shape->sum + 2);
}

static int measure_ipv4(const struct sk_buff *packet, struct shape *shape)
{
	struct iphdr place;
	const struct iphdr *header = skb_header_pointer(packet, 0, sizeof(place), &place);

	if (!header || header->ihl < 5 || packet->len < header->ihl * 4)
		return -EINVAL;
	shape->transport = shape->open = header->ihl * 4;
	shape->source = offsetof(struct iphdr, saddr);
	shape->end = sizeof(struct iphdr);
	fix(shape, 0, 1);
	fix(shape, 2, 4);
	fix(shape, 6, 8);
	fix(shape, 9, 12);
	fix(shape, sizeof(struct iphdr), shape->transport);
	if (!(header->frag_off & htons(IP_OFFSET)))
		measure_transport(packet, shape, header->protocol);
	return 0;
}

static int measure_ipv6(const struct sk_buff *packet, struct shape *shape)
{
	struct ipv6hdr place;
	const struct ipv6hdr *header = skb_header_pointer(packet, 0, sizeof(place), &place);
	__be16 fragment = 0;
	u8 next;
	int at;

	if (!header)
		return -EINVAL;
	shape->transport = shape->open = sizeof(*header);
	shape->source = offsetof(struct ipv6hdr, saddr);
	shape->end = sizeof(*header);
	fix(shape, 0, 1);
	fix(shape, 4, 7);
	next = header->nexthdr;
	at = ipv6_skip_exthdr(packet, sizeof(*header), &next, &fragment);
	if (at < 0 || fragment & htons(IP6_OFFSET))
		return 0;
	fix(shape, sizeof(*header), at);
	shape->transport = at;
	measure_transport(packet, shape, next);
	return 0;
}

static int measure(const struct cordon_job *job, struct shape *shape)
{
	memset(shape, 0, sizeof(*shape));
	/* A tunnel's packet has more headers that were measured: nothing is open. */
	if (job->packet->encapsulation)
		return 0;
	return job->family == NFPROTO_IPV6 ? measure_ipv6(job->packet, shape) : measure_ipv4(job->packet, shape);
}

/* Gives `new` back the bytes of `old` that may not change; whether there were any. Both begin at packet offset `at`. */
static bool keep(const struct shape *shape, u8 *new, const u8 *old, u32 at, u32 length)
{
	bool kept = false;
	u32 i, field;

	for (i = 0; i < length; i++) {
		bool fixed = at + i >= shape->open;

		for (field = 0; field < shape->fields && !fixed; field++)
			fixed = at + i >= shape->fixed[field].at && at + i < shape->fixed[field].end;
		if (fixed && new[i] != old[i]) {
			new[i] = old[i];
			kept = true;
		}
	}
	return kept;
}

/* What the bytes that lie in from .. to add to a sum. */
static __wsum sum_of(const u8 *bytes, u32 at, u32 length, u32 from, u32 to)
{
	u32 begin = max(at, from), end = min(at + length, to);

	return begin < end ? csum_shift(csum_partial(bytes + (begin - at), end - begin, 0), begin & 1) : 0;
}

/* Puts `new` where the packet, linear and writable as far as that, has other bytes, and corrects the transport checksum. */
static void put(struct sk_buff *packet, const struct shape *shape, const u8 *new, u32 at, u32 length)
{
	u8 *old = packet->data + at;
	__sum16 *sum = (__sum16 *)(packet->data + shape->sum);
	__wsum pseudo = csum_sub(sum_of(new, at, length, shape->source, shape->end), sum_of(old, at, length, shape->source, shape->end));
	__wsum data = csum_sub(sum_of(new, at, length, shape->transport, U32_MAX), sum_of(old, at, length, shape->transport, U32_MAX));

	memcpy(old, new, length);
	if (!shape->sum || (shape->optional && !*sum && packet->ip_summed != CHECKSUM_PARTIAL))
		return;
	if (!shape->pseudo)
		pseudo = 0;
	if (packet->ip_summed == CHECKSUM_PARTIAL) {
		/* It holds the sum of the pseudo-header; the rest is added later. */
		*sum = ~csum_fold(csum_add(pseudo, csum_unfold(*sum)));
		return;
	}
	*sum = csum_fold(csum_add(csum_add(pseudo, data), ~csum_unfold(*sum)));
	if (shape->optional && !*sum)
		*sum = CSUM_MANGLED_0;
}

/* Changes `length` bytes at `at`, which the packet has, to what lies in the window at `from`; each byte is read once. */
static int change(struct cordon_job *job, const struct shape *shape, u32 at, const u8 *from, u32 length)
{
	struct sk_buff *packet = job->packet;
	u32 reach = max3(at + length, shape->transport, shape->sum ? shape->sum + 2 : 0);
	u8 new[CHUNK];

	/* A packet may end within its extension headers. */
	if (skb_ensure_writable(packet, min(reach, packet->len)))
		return -ENOMEM;
	/* What a device found out about the sum holds no more. */
	if (packet->ip_summed != CHECKSUM_PARTIAL)
		packet->ip_summed = CHECKSUM_NONE;
	while (length) {
		u32 part = min_t(u32, length, CHUNK);

		memcpy(new, from, part);
		keep(shape, new, packet->data + at, at, part);
		if (memcmp(new, packet->data + at, part)) {
			put(packet, shape, new, at, part);
			job->changed = true;
		}
		at += part;
		from += part;
		length -= part;
	}
	if (job->family == NFPROTO_IPV4)
		ip_send_check((struct iphdr *)packet->data);
	return 0;
}

static u8 *area_of(const struct cordon_window *window)
{
	return (u8 *)window->base + cordon_window_area(window, CORDON_ARGUMENT)->start;
}

/* Copies the packet to the start of the argument area. */
int cordon_packet_prepare(struct cordon_window *window, struct cordon_run *run, struct cordon_job *job)
{
	const struct cordon_memory *area = cordon_window_area(window, CORDON_ARGUMENT);
	u32 length = min_t(u64, job->packet->len, area ? area->end - area->start : 0);

	if (job->most)
		length = min(length, job->most);
	if (!length || skb_copy_bits(job->packet, 0, area_of(window), length))
		return -EINVAL;
	job->copied = length;
	run->args[0] = area->start;
	run->args[1] = length;
	return 0;
}

/* Where copy and packet differ: from .. to; nothing if from == to. */
static void compare(const struct cordon_job *job, const u8 *copy, u32 *from, u32 *to)
{
	u32 at, i, part;
	u8 old[CHUNK];

	*from = *to = 0;
	for (at = 0; at < job->copied; at += part) {
		part = min_t(u32, job->copied - at, CHUNK);
		if (skb_copy_bits(job->packet, at, old, part))
			return;
		for (i = 0; i < part; i++) {
			if (old[i] == READ_ONCE(copy[at + i]))
				continue;
			*from = *to ? *from : at + i;
			*to = at + i + 1;
		}
	}
}

/* Takes over what the handler has changed in its copy, if it lets the packet pass. */
void cordon_packet_finish(struct cordon_window *window, const struct cordon_run *run, struct cordon_job *job)
{
	struct shape shape;
	u32 from, to;

	if (!job->writable || run->kind != CORDON_RETURNED || !run->result)
		return;
	compare(job, area_of(window), &from, &to);
	if (from < to && !measure(job, &shape))
		job->failed = change(job, &shape, from, area_of(window) + from, to - from);
}

/* Whether a packet has these bytes. */
static bool has(const struct sk_buff *packet, u64 at, u64 bytes)
{
	return bytes <= packet->len && at <= packet->len - bytes;
}

/* long cordon_packet_load(unsigned long at, void *to, unsigned long bytes) */
u32 cordon_packet_load(struct cordon_context *context)
{
	const struct sk_buff *packet = context->job ? context->job->packet : NULL;
	u64 at = context->regs[RDI], bytes = context->regs[RDX];
	u8 *to;
	u32 stop;

	if (!packet)
		return cordon_gate_give(context, -ENODATA);
	if (!has(packet, at, bytes))
		return cordon_gate_give(context, -ERANGE);
	stop = cordon_gate_pay(context, 8 + (bytes >> 4));
	if (!stop && bytes)
		stop = cordon_gate_range(context, context->regs[RSI], bytes, true, &to);
	if (stop)
		return stop;
	return cordon_gate_give(context, bytes ? skb_copy_bits(packet, at, to, bytes) : 0);
}

/* Whether a store would change what is fixed. */
static bool is_fixed(const struct cordon_job *job, const struct shape *shape, u32 at, const u8 *from, u32 bytes)
{
	u8 old[CHUNK], new[CHUNK];
	u32 done, part;

	for (done = 0; done < bytes; done += part) {
		part = min_t(u32, bytes - done, CHUNK);
		memcpy(new, from + done, part);
		if (skb_copy_bits(job->packet, at + done, old, part) || keep(shape, new, old, at + done, part))
			return true;
	}
	return false;
}

/* long cordon_packet_store(unsigned long at, const void *from, unsigned long bytes) */
u32 cordon_packet_store(struct cordon_context *context)
{
	struct cordon_job *job = context->job;
	u64 at = context->regs[RDI], bytes = context->regs[RDX];
	struct shape shape;
	u8 *from;
	u32 stop;
	int failed;

	if (!job || !job->packet)
		return cordon_gate_give(context, -ENODATA);
	if (!job->writable)
		return cordon_gate_give(context, -EROFS);
	if (!has(job->packet, at, bytes))
		return cordon_gate_give(context, -ERANGE);
	stop = cordon_gate_pay(context, 16 + (bytes >> 2));
	if (!stop && bytes)
		stop = cordon_gate_range(context, context->regs[RSI], bytes, false, &from);
	if (stop || !bytes)
		return stop ?: cordon_gate_give(context, 0);
	failed = measure(job, &shape) || is_fixed(job, &shape, at, from, bytes) ? -EPERM : change(job, &shape, at, from, bytes);
	/* The copy follows, so that it does not change the packet back. */
	if (!failed && at < job->copied)
		failed = skb_copy_bits(job->packet, at, area_of(context->window) + at, min_t(u64, bytes, job->copied - at));
	return cordon_gate_give(context, failed);
}
