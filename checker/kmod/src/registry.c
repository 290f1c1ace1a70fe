// SPDX-License-Identifier: GPL-2.0
/* Who holds a handler: descriptors, its pin, and whoever looks at it by number. The last one to let go destroys it.
 *
 * A pin holds the module as well, so a module with pinned handlers does not unload; CORDON_REMOVE ends them first. A handler that was removed
 * calls no more entries; its memory goes with the last descriptor or mapping. */
#include <linux/cred.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/sched.h>
#include "internal.h"

static DEFINE_MUTEX(lock);
static DEFINE_IDR(ids); /* under lock: all that have a number and have not ended */

/* Notes whose the new handler is; the caller holds it. */
void cordon_introduce(struct cordon_handler *handler, const char *name)
{
	kref_init(&handler->users);
	handler->unprivileged = !capable(CAP_SYS_MODULE);
	handler->owner = current_uid();
	handler->pid = task_tgid_nr(current);
	get_task_comm(handler->process, current);
	strscpy(handler->name, name, sizeof(handler->name));
}

/* Gives the handler its number. */
int cordon_register(struct cordon_handler *handler)
{
	int id;

	mutex_lock(&lock);
	id = idr_alloc_cyclic(&ids, handler, 1, 0, GFP_KERNEL);
	if (id > 0)
		handler->id = id;
	mutex_unlock(&lock);
	return id < 0 ? id : 0;
}

/* Needs lock. */
static void forget(struct cordon_handler *handler)
{
	if (handler->id && !handler->ended)
		idr_remove(&ids, handler->id);
	WRITE_ONCE(handler->ended, true);
}

static void release(struct kref *users)
{
	struct cordon_handler *handler = container_of(users, struct cordon_handler, users);

	forget(handler);
	mutex_unlock(&lock);
	cordon_destroy(handler);
}

void cordon_put(struct cordon_handler *handler)
{
	kref_put_mutex(&handler->users, release, &lock);
}

/* Whether the caller may see, open and end it. */
static bool is_ours(const struct cordon_handler *handler)
{
	return capable(CAP_SYS_MODULE) || (handler->unprivileged && uid_eq(handler->owner, current_uid()));
}

/* The caller's handler of that number, or the next one; to be put back. NULL if there is none. */
struct cordon_handler *cordon_get(u32 id, bool or_above)
{
	struct cordon_handler *handler;
	int at = id;

	if (id > INT_MAX)
		return NULL;
	mutex_lock(&lock);
	handler = idr_get_next(&ids, &at);
	while (handler && or_above && !is_ours(handler)) {
		at++;
		handler = idr_get_next(&ids, &at);
	}
	if (handler && ((!or_above && at != id) || !is_ours(handler)))
		handler = NULL;
	if (handler)
		kref_get(&handler->users);
	mutex_unlock(&lock);
	return handler;
}

/* The handler then lives until it is unpinned or ended, and the module with it. */
int cordon_pin(struct cordon_handler *handler)
{
	int failed = 0;

	if (!capable(CAP_SYS_MODULE))
		return -EPERM;
	mutex_lock(&lock);
	if (handler->ended) {
		failed = -ENODEV;
	} else if (!handler->pinned) {
		handler->pinned = true;
		kref_get(&handler->users);
		__module_get(THIS_MODULE);
	}
	mutex_unlock(&lock);
	return failed;
}

/* The caller holds the handler, and an open file the module. */
void cordon_unpin(struct cordon_handler *handler)
{
	bool pinned;

	mutex_lock(&lock);
	pinned = handler->pinned;
	handler->pinned = false;
	mutex_unlock(&lock);
	if (pinned) {
		cordon_put(handler);
		module_put(THIS_MODULE);
	}
}

/* No more calls: no event is attached afterwards, and none can be. The caller holds the handler. */
void cordon_end(struct cordon_handler *handler)
{
	mutex_lock(&lock);
	forget(handler);
	mutex_unlock(&lock);
	/* Who attaches looks at `ended` under the lock that this takes. */
	cordon_events_detach(handler);
	cordon_unpin(handler);
}

void cordon_count(struct cordon_handler *handler, struct cordon_stats *stats)
{
	*stats = (struct cordon_stats){
		.calls = atomic64_read(&handler->calls),
		.returned = atomic64_read(&handler->returned),
		.stopped = atomic64_read(&handler->stopped),
		.busy = atomic64_read(&handler->missed),
		.refused = atomic64_read(&handler->refused),
		.pages = handler->window_pages,
		.text_bytes = handler->image.text_length,
	};
}

void cordon_tell(struct cordon_handler *handler, struct cordon_about *about)
{
	memset(about, 0, sizeof(*about));
	about->id = handler->id;
	about->flags = (handler->pinned ? CORDON_PINNED : 0) | (handler->ended ? CORDON_ENDED : 0) |
		       (handler->unprivileged ? CORDON_UNPRIVILEGED : 0);
	about->uid = from_kuid_munged(current_user_ns(), handler->owner);
	about->pid = handler->pid;
	about->events = cordon_events_count(handler);
	memcpy(about->process, handler->process, sizeof(about->process));
	memcpy(about->name, handler->name, sizeof(about->name));
	cordon_count(handler, &about->stats);
}
