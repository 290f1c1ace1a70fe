// SPDX-License-Identifier: GPL-2.0
/* Events that call an entry: packets (netfilter, IPv4 and IPv6), kprobes, tracepoints, a timer.
 *
 * A packet is copied to the start of the argument area when the window has been taken, so no two callers share it; the entry gets
 * (offset, bytes, hook, whole length) and answers 0 to drop it. Whatever cannot be asked lets it pass. All other events give (count, CPU,
 * process, time in ns) and no word of the kernel's memory or registers. Kprobes and tracepoints may come with interrupts off, where only fuel
 * ends a loop: they take metered images only. */
#include <linux/hrtimer.h>
#include <linux/kprobes.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>
#include <net/net_namespace.h>
#include "internal.h"

/* Shortest period of a timer, ns. */
#define SHORTEST_PERIOD 100000

/* Tracepoints that may be on their way on one CPU: task, softirq, hardirq, NMI. */
#define MOST_TRACING 4

static DEFINE_PER_CPU(u32, tracing);

struct cordon_event {
	struct list_head list; /* of the handler, under its events_lock */
	struct cordon_handler *handler;
	struct cordon_attach attach;
	u64 entry;
	u32 number;
	atomic64_t fired, returned, stopped, missed, zero, changed, unchanged;
	raw_spinlock_t last_lock;
	struct cordon_run last; /* the last call that was stopped */
	union {
		struct {
			struct nf_hook_ops operations;
			struct net *net;
		};
		struct kprobe probe;
		struct tracepoint *tracepoint;
		struct hrtimer timer;
	};
};

static bool is_netfilter(const struct cordon_event *event)
{
	return event->attach.kind == CORDON_NETFILTER || event->attach.kind == CORDON_NETFILTER6;
}

/* Runs the entry; false if there is no answer. */
static bool fire(struct cordon_event *event, struct cordon_run *run, struct cordon_job *job)
{
	unsigned long flags;

	atomic64_inc(&event->fired);
	run->time_limit_ns = event->attach.time_limit_ns;
	run->fuel = event->attach.fuel;
	if (cordon_run_with(event->handler, event->entry, run, job)) {
		atomic64_inc(&event->missed);
		return false;
	}
	if (run->kind == CORDON_RETURNED) {
		atomic64_inc(&event->returned);
		if (!run->result)
			atomic64_inc(&event->zero);
		return true;
	}
	atomic64_inc(&event->stopped);
	/* The same event on another CPU, or below this one, may be here as well; then its report is enough. */
	local_irq_save(flags);
	if (raw_spin_trylock(&event->last_lock)) {
		event->last = *run;
		raw_spin_unlock(&event->last_lock);
	}
	local_irq_restore(flags);
	return false;
}

static void fire_plain(struct cordon_event *event)
{
	struct cordon_run run = {};

	run.args[0] = atomic64_read(&event->fired);
	run.args[1] = raw_smp_processor_id();
	run.args[2] = task_tgid_nr(current);
	run.args[3] = ktime_get_mono_fast_ns();
	fire(event, &run, NULL);
}

static unsigned int packet(void *private, struct sk_buff *skb, const struct nf_hook_state *state)
{
	struct cordon_event *event = private;
	struct cordon_job job = {
		.prepare = cordon_packet_prepare,
		.finish = cordon_packet_finish,
		.packet = skb,
		.family = state->pf,
		.writable = event->attach.flags & CORDON_WRITABLE,
		.most = event->attach.bytes,
	};
	struct cordon_run run = {};
	bool drop;

	run.args[2] = state->hook;
	run.args[3] = skb->len;
	drop = fire(event, &run, &job) && !run.result;
	if (job.changed)
		atomic64_inc(&event->changed);
	if (job.failed)
		atomic64_inc(&event->unchanged);
	return drop ? NF_DROP : NF_ACCEPT;
}

static int attach_netfilter(struct cordon_event *event)
{
	if (event->attach.hook >= NF_INET_NUMHOOKS || !cordon_window_area(cordon_window_of(event->handler, 0), CORDON_ARGUMENT))
		return -EINVAL;
	event->operations = (struct nf_hook_ops){
		.hook = packet,
		.priv = event,
		.pf = event->attach.kind == CORDON_NETFILTER6 ? NFPROTO_IPV6 : NFPROTO_IPV4,
		.hooknum = event->attach.hook,
		.priority = event->attach.kind == CORDON_NETFILTER6 ? (int)NF_IP6_PRI_FIRST : (int)NF_IP_PRI_FIRST,
	};
	event->net = get_net(current->nsproxy->net_ns);
	return nf_register_net_hook(event->net, &event->operations);
}

static int probed(struct kprobe *probe, struct pt_regs *regs)
{
	fire_plain(container_of(probe, struct cordon_event, probe));
	return 0;
}

static int attach_kprobe(struct cordon_event *event)
{
	if (event->attach.offset > S32_MAX)
		return -EINVAL;
	event->probe.symbol_name = event->attach.name;
	event->probe.offset = event->attach.offset;
	event->probe.pre_handler = probed;
	return register_kprobe(&event->probe);
}

struct search {
	const char *name;
	struct tracepoint *found;
};

static void match(struct tracepoint *tracepoint, void *data)
{
	struct search *search = data;

	if (!strcmp(tracepoint->name, search->name))
		search->found = tracepoint;
}

/* Tracepoints pass their own arguments behind `data`; none of them is looked at. What is called on the way may have the same tracepoint:
 * that must come to an end. */
static void traced(void *data)
{
	struct cordon_event *event = data;

	preempt_disable_notrace();
	if (this_cpu_inc_return(tracing) <= MOST_TRACING) {
		fire_plain(event);
	} else {
		atomic64_inc(&event->fired);
		atomic64_inc(&event->missed);
	}
	this_cpu_dec(tracing);
	preempt_enable_notrace();
}

static int attach_tracepoint(struct cordon_event *event)
{
	struct search search = { .name = event->attach.name };

	for_each_kernel_tracepoint(match, &search);
	if (!search.found)
		return -ENOENT;
	event->tracepoint = search.found;
	return tracepoint_probe_register(event->tracepoint, traced, event);
}

static enum hrtimer_restart elapsed(struct hrtimer *timer)
{
	struct cordon_event *event = container_of(timer, struct cordon_event, timer);

	fire_plain(event);
	hrtimer_forward_now(timer, ns_to_ktime(event->attach.period_ns));
	return HRTIMER_RESTART;
}

/* In a softirq: interrupts are on. */
static int attach_timer(struct cordon_event *event)
{
	if (event->attach.period_ns < SHORTEST_PERIOD || event->attach.period_ns > S64_MAX)
		return -EINVAL;
	hrtimer_init(&event->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_SOFT);
	event->timer.function = elapsed;
	hrtimer_start(&event->timer, ns_to_ktime(event->attach.period_ns), HRTIMER_MODE_REL_SOFT);
	return 0;
}

static int attach(struct cordon_event *event)
{
	bool packets = is_netfilter(event);

	/* What means nothing must be 0, so that it can mean something one day. */
	if (event->attach.flags & ~(packets ? CORDON_WRITABLE : 0) || (event->attach.bytes && !packets) ||
	    (event->attach.offset && event->attach.kind != CORDON_KPROBE))
		return -EINVAL;
	switch (event->attach.kind) {
	case CORDON_NETFILTER:
	case CORDON_NETFILTER6:
		return attach_netfilter(event);
	case CORDON_KPROBE:
		return event->handler->image.metered ? attach_kprobe(event) : -EPERM;
	case CORDON_TRACEPOINT:
		return event->handler->image.metered ? attach_tracepoint(event) : -EPERM;
	case CORDON_TIMER:
		return attach_timer(event);
	}
	return -EINVAL;
}

/* When it returns, the event fires no more and no call of it is on its way. */
static void detach(struct cordon_event *event)
{
	switch (event->attach.kind) {
	case CORDON_NETFILTER:
	case CORDON_NETFILTER6:
		nf_unregister_net_hook(event->net, &event->operations);
		put_net(event->net);
		synchronize_net();
		break;
	case CORDON_KPROBE:
		unregister_kprobe(&event->probe);
		break;
	case CORDON_TRACEPOINT:
		tracepoint_probe_unregister(event->tracepoint, traced, event);
		tracepoint_synchronize_unregister();
		break;
	case CORDON_TIMER:
		hrtimer_cancel(&event->timer);
		break;
	}
}

/* Attaches an entry; gives the event's number, which is unique for the handler. */
int cordon_event_attach(struct cordon_handler *handler, const struct cordon_attach *wanted)
{
	struct cordon_event *event = kzalloc(sizeof(*event), GFP_KERNEL_ACCOUNT);
	s64 entry;
	int failed;

	if (!event)
		return -ENOMEM;
	event->attach = *wanted;
	event->attach.name[sizeof(event->attach.name) - 1] = 0;
	event->handler = handler;
	raw_spin_lock_init(&event->last_lock);
	entry = cordon_rs_entry(handler->note, handler->image.note_length, wanted->entry, strnlen(wanted->entry, sizeof(wanted->entry)));
	event->entry = entry;
	mutex_lock(&handler->events_lock);
	failed = handler->ended ? -ENODEV : entry < 0 ? -ENOENT : attach(event);
	if (failed) {
		if (is_netfilter(event) && event->net)
			put_net(event->net);
		kfree(event);
	} else {
		event->number = handler->next_event++ & S32_MAX;
		list_add_tail(&event->list, &handler->events);
		failed = event->number;
	}
	mutex_unlock(&handler->events_lock);
	return failed;
}

/* Numbers ascend in the list. */
static struct cordon_event *find(struct cordon_handler *handler, u32 number, bool or_above)
{
	struct cordon_event *event;

	list_for_each_entry(event, &handler->events, list)
		if (event->number == number || (or_above && event->number > number))
			return event;
	return NULL;
}

int cordon_event_detach(struct cordon_handler *handler, u32 number)
{
	struct cordon_event *event;

	mutex_lock(&handler->events_lock);
	event = find(handler, number, false);
	if (event) {
		list_del(&event->list);
		detach(event);
	}
	mutex_unlock(&handler->events_lock);
	kfree(event);
	return event ? 0 : -ENOENT;
}

int cordon_event_tell(struct cordon_handler *handler, struct cordon_event_stats *stats)
{
	struct cordon_event *event;
	unsigned long flags;

	mutex_lock(&handler->events_lock);
	event = find(handler, stats->number, stats->flags & CORDON_OR_ABOVE);
	if (event) {
		stats->number = event->number;
		stats->attach = event->attach;
		stats->fired = atomic64_read(&event->fired);
		stats->returned = atomic64_read(&event->returned);
		stats->stopped = atomic64_read(&event->stopped);
		stats->missed = atomic64_read(&event->missed);
		stats->zero = atomic64_read(&event->zero);
		stats->changed = atomic64_read(&event->changed);
		stats->unchanged = atomic64_read(&event->unchanged);
		/* Those inside another probe never come here. */
		if (event->attach.kind == CORDON_KPROBE) {
			stats->fired += event->probe.nmissed;
			stats->missed += event->probe.nmissed;
		}
		raw_spin_lock_irqsave(&event->last_lock, flags);
		stats->last = event->last;
		raw_spin_unlock_irqrestore(&event->last_lock, flags);
	}
	mutex_unlock(&handler->events_lock);
	return event ? 0 : -ENOENT;
}

u32 cordon_events_count(struct cordon_handler *handler)
{
	struct cordon_event *event;
	u32 count = 0;

	mutex_lock(&handler->events_lock);
	list_for_each_entry(event, &handler->events, list)
		count++;
	mutex_unlock(&handler->events_lock);
	return count;
}

void cordon_events_detach(struct cordon_handler *handler)
{
	struct cordon_event *event, *next;

	mutex_lock(&handler->events_lock);
	list_for_each_entry_safe(event, next, &handler->events, list) {
		list_del(&event->list);
		detach(event);
		kfree(event);
	}
	mutex_unlock(&handler->events_lock);
}
