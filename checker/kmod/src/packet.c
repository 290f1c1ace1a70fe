// SPDX-License-Identifier: GPL-2.0
/* Packets of netfilter events: a copy for the handler, and more of the bytes on demand. Offsets count from the network header. */
#include <linux/skbuff.h>
#include "internal.h"

/* Copies the packet to the start of the argument area. */
int cordon_packet_prepare(struct cordon_handler *handler, struct cordon_run *run, struct cordon_job *job)
{
	const struct cordon_memory *area = cordon_window_area(handler, CORDON_ARGUMENT);
	u32 length = min_t(u64, job->packet->len, area ? area->end - area->start : 0);

	if (!length || skb_copy_bits(job->packet, 0, (u8 *)handler->base + area->start, length))
		return -EINVAL;
	run->args[0] = area->start;
	run->args[1] = length;
	return 0;
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
