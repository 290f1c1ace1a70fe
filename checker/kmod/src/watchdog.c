// SPDX-License-Identifier: GPL-2.0
/* The time limit: a timer on each CPU looks whether a call has run past its deadline and, if the interrupted instruction is checked text,
 * sends it to cordon_expire. A handler holds nothing of the kernel's, so any instruction is a good place. */
#include <asm/irq_regs.h>
#include <asm/ptrace.h>
#include <linux/cpuhotplug.h>
#include <linux/hrtimer.h>
#include "internal.h"

#define PERIOD_NS 1000000

asmlinkage void cordon_expire(void);

static DEFINE_PER_CPU(struct hrtimer, timers);
static DEFINE_PER_CPU(bool, armed);
static int hotplug_state = -1;

static void store_registers(struct cordon_context *context, const struct pt_regs *regs)
{
	const u64 values[16] = { regs->ax, regs->cx, regs->dx, regs->bx, regs->sp, regs->bp, regs->si, regs->di,
				 regs->r8, regs->r9, regs->r10, regs->r11, regs->r12, regs->r13, regs->r14, regs->r15 };

	memcpy(context->regs, values, sizeof(values));
	context->rip = regs->ip;
}

static enum hrtimer_restart tick(struct hrtimer *timer)
{
	struct cordon_context *context = this_cpu_read(cordon_current);
	struct pt_regs *regs = get_irq_regs();

	if (context && ktime_get_mono_fast_ns() >= context->deadline) {
		if (regs && cordon_in_text(context->handler, regs->ip)) {
			store_registers(context, regs);
			regs->ip = (unsigned long)cordon_expire;
		} else {
			/* In a gate, or on the way in or out: the gate looks before it returns. */
			WRITE_ONCE(context->expired, 1);
		}
	}
	hrtimer_forward_now(timer, ns_to_ktime(PERIOD_NS));
	return HRTIMER_RESTART;
}

static int start(unsigned int cpu)
{
	struct hrtimer *timer = this_cpu_ptr(&timers);

	hrtimer_init(timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	timer->function = tick;
	hrtimer_start(timer, ns_to_ktime(PERIOD_NS), HRTIMER_MODE_REL_PINNED_HARD);
	this_cpu_write(armed, true);
	return 0;
}

static int stop(unsigned int cpu)
{
	this_cpu_write(armed, false);
	hrtimer_cancel(this_cpu_ptr(&timers));
	return 0;
}

bool cordon_watchdog_armed(void)
{
	return this_cpu_read(armed);
}

int cordon_watchdog_init(void)
{
	int state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "cordon:watchdog", start, stop);

	if (state < 0)
		return state;
	hotplug_state = state;
	return 0;
}

void cordon_watchdog_exit(void)
{
	cpuhp_remove_state(hotplug_state);
}
