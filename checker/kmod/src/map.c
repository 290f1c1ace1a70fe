// SPDX-License-Identifier: GPL-2.0
/* Maps: tables in the kernel's own memory that handlers and user space share, through copies only. One map may serve many handlers, and the
 * windows of all CPUs; no handler can break what another one relies on.
 *
 * All memory is there from the start, so a gate allocates nothing. A hash map keeps chains, by a secret hash, of at most CHAIN entries: no
 * operation takes longer than that. The lock is held with interrupts off; a gate tries it for a bounded time only and gives EBUSY, since it
 * may have interrupted the holder on its own CPU (an NMI, a kprobe on something that is called here). */
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/siphash.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "internal.h"

#define CHAIN 64
#define TRIES 2000

/* `used` changes under the lock. The value lies behind the key. */
struct entry {
	u32 next; /* 1 + index of the next one of its chain, or of the free ones */
	u32 used;
	u8 key[];
};

struct cordon_map {
	struct kref users;
	struct cordon_map_spec spec;
	u32 stride, value_at;
	u8 *entries;
	/* hash */
	siphash_key_t secret;
	u32 *chains; /* 1 + index of the first entry */
	u32 mask, free;
	raw_spinlock_t lock;
};

atomic64_t cordon_maps_alive = ATOMIC64_INIT(0);

static struct entry *entry_at(const struct cordon_map *map, u32 index)
{
	return (struct entry *)(map->entries + (u64)index * map->stride);
}

static u8 *value_of(const struct cordon_map *map, struct entry *entry)
{
	return (u8 *)entry + map->value_at;
}

static bool is_hash(const struct cordon_map *map)
{
	return map->spec.kind == CORDON_MAP_HASH;
}

static u32 *chain_of(const struct cordon_map *map, const u8 *key)
{
	return &map->chains[siphash(key, map->spec.key_bytes, &map->secret) & map->mask];
}

/* The key's entry. Of a hash map, *link gets what points at it, *length the number of entries passed. Needs the lock. */
static struct entry *find(const struct cordon_map *map, const u8 *key, u32 **link, u32 *length)
{
	u32 *at, passed = 0, index;

	if (!is_hash(map)) {
		memcpy(&index, key, sizeof(index));
		return index < map->spec.entries ? entry_at(map, array_index_nospec(index, map->spec.entries)) : NULL;
	}
	for (at = chain_of(map, key); *at; at = &entry_at(map, *at - 1)->next) {
		struct entry *entry = entry_at(map, *at - 1);

		if (!memcmp(entry->key, key, map->spec.key_bytes)) {
			*link = at;
			return entry;
		}
		passed++;
	}
	*length = passed;
	return NULL;
}

/* A new entry for a key that has none; its value is for the caller to fill in. Needs the lock. */
static struct entry *add_entry(struct cordon_map *map, const u8 *key, u32 length)
{
	struct entry *entry;
	u32 *chain;

	if (!is_hash(map) || !map->free || length >= CHAIN)
		return NULL;
	entry = entry_at(map, map->free - 1);
	chain = chain_of(map, key);
	swap(*chain, map->free);
	swap(entry->next, map->free);
	memcpy(entry->key, key, map->spec.key_bytes);
	WRITE_ONCE(entry->used, 1);
	return entry;
}

static s64 lookup(struct cordon_map *map, const u8 *key, u8 *value)
{
	u32 *link, length;
	struct entry *entry = find(map, key, &link, &length);

	if (!entry)
		return -ENOENT;
	memcpy(value, value_of(map, entry), map->spec.value_bytes);
	return 0;
}

static s64 update(struct cordon_map *map, const u8 *key, const u8 *value, u64 flags)
{
	u32 *link, length = 0;
	struct entry *entry = find(map, key, &link, &length);

	if (flags > CORDON_MAP_EXIST)
		return -EINVAL;
	if (entry && flags == CORDON_MAP_NOEXIST)
		return -EEXIST;
	if (!entry && flags == CORDON_MAP_EXIST)
		return -ENOENT;
	entry = entry ?: add_entry(map, key, length);
	if (!entry)
		return is_hash(map) ? -ENOSPC : -ENOENT;
	memcpy(value_of(map, entry), value, map->spec.value_bytes);
	return 0;
}

static s64 delete(struct cordon_map *map, const u8 *key)
{
	u32 *link, length;
	struct entry *entry = find(map, key, &link, &length);

	if (!is_hash(map))
		return -EINVAL;
	if (!entry)
		return -ENOENT;
	/* The chain goes on behind it, and the free ones begin with it. */
	swap(*link, entry->next);
	swap(entry->next, map->free);
	WRITE_ONCE(entry->used, 0);
	return 0;
}

static s64 add(struct cordon_map *map, const u8 *key, u64 delta)
{
	u32 *link, length = 0;
	struct entry *entry;

	if (map->spec.value_bytes != sizeof(u64))
		return -EINVAL;
	entry = find(map, key, &link, &length);
	if (entry) {
		*(u64 *)value_of(map, entry) += delta;
		return 0;
	}
	return update(map, key, (const u8 *)&delta, CORDON_MAP_NOEXIST);
}

static bool try_lock(struct cordon_map *map, unsigned long *flags)
{
	unsigned int tries;

	local_irq_save(*flags);
	for (tries = 0; tries < TRIES; tries++) {
		if (raw_spin_trylock(&map->lock))
			return true;
		cpu_relax();
	}
	local_irq_restore(*flags);
	return false;
}

/* What the gates have in common: the map in rdi, the key at rsi, a value at rdx (`bytes` of it) that is read or written. The key is copied
 * once, for user space may write to the window meanwhile. */
struct request {
	struct cordon_map *map;
	u8 key[CORDON_MAP_KEY_BYTES];
	u8 *value;
	unsigned long flags;
};

/* 0 with the lock held; else *stop is what the gate returns. */
static int begin(struct cordon_context *context, struct request *request, bool has_value, bool writes, u32 *stop)
{
	const u64 *regs = context->regs;
	struct cordon_map *map = NULL;
	u8 *key;

	if (regs[RDI] < CORDON_MAPS)
		map = smp_load_acquire(&context->handler->maps[array_index_nospec(regs[RDI], CORDON_MAPS)]);
	if (!map) {
		*stop = cordon_gate_give(context, -EBADF);
		return -EBADF;
	}
	*stop = cordon_gate_pay(context, 16 + ((map->spec.key_bytes + (has_value ? map->spec.value_bytes : 0)) >> 4));
	if (!*stop)
		*stop = cordon_gate_range(context, regs[RSI], map->spec.key_bytes, false, &key);
	if (!*stop && has_value)
		*stop = cordon_gate_range(context, regs[RDX], map->spec.value_bytes, writes, &request->value);
	if (*stop)
		return -EFAULT;
	memcpy(request->key, key, map->spec.key_bytes);
	request->map = map;
	if (!try_lock(map, &request->flags)) {
		*stop = cordon_gate_give(context, -EBUSY);
		return -EBUSY;
	}
	return 0;
}

static u32 end(struct cordon_context *context, struct request *request, s64 result)
{
	raw_spin_unlock_irqrestore(&request->map->lock, request->flags);
	return cordon_gate_give(context, result);
}

/* long cordon_map_lookup(unsigned long map, const void *key, void *value) */
u32 cordon_map_lookup(struct cordon_context *context)
{
	struct request request;
	u32 stop;

	if (begin(context, &request, true, true, &stop))
		return stop;
	return end(context, &request, lookup(request.map, request.key, request.value));
}

/* long cordon_map_update(unsigned long map, const void *key, const void *value, unsigned long flags) */
u32 cordon_map_update(struct cordon_context *context)
{
	struct request request;
	u32 stop;

	if (begin(context, &request, true, false, &stop))
		return stop;
	return end(context, &request, update(request.map, request.key, request.value, context->regs[RCX]));
}

/* long cordon_map_delete(unsigned long map, const void *key) */
u32 cordon_map_delete(struct cordon_context *context)
{
	struct request request;
	u32 stop;

	if (begin(context, &request, false, false, &stop))
		return stop;
	return end(context, &request, delete(request.map, request.key));
}

/* long cordon_map_add(unsigned long map, const void *key, unsigned long delta) */
u32 cordon_map_add(struct cordon_context *context)
{
	struct request request;
	u32 stop;

	if (begin(context, &request, false, false, &stop))
		return stop;
	return end(context, &request, add(request.map, request.key, context->regs[RDX]));
}

static void map_free(struct kref *users)
{
	struct cordon_map *map = container_of(users, struct cordon_map, users);

	kvfree(map->entries);
	kvfree(map->chains);
	kfree_sensitive(map);
	atomic64_dec(&cordon_maps_alive);
}

static bool is_sound(const struct cordon_map_spec *spec)
{
	u64 entry = sizeof(struct entry) + ALIGN(spec->key_bytes, 8) + ALIGN(spec->value_bytes, 8) + sizeof(u32) * 2;

	if (!spec->entries || spec->entries > CORDON_MAP_ENTRIES || spec->reserved || !spec->value_bytes ||
	    spec->value_bytes > CORDON_MAP_VALUE_BYTES || !spec->key_bytes || spec->key_bytes > CORDON_MAP_KEY_BYTES)
		return false;
	if (spec->kind != CORDON_MAP_HASH && !(spec->kind == CORDON_MAP_ARRAY && spec->key_bytes == sizeof(u32)))
		return false;
	return entry * spec->entries <= (u64)READ_ONCE(cordon_memory_limit_mb) << 20;
}

/* Entries and chains; all are free, or, in an array, all are there. */
static int fill(struct cordon_map *map)
{
	u32 chains = roundup_pow_of_two(map->spec.entries), i;

	map->entries = kvcalloc(map->spec.entries, map->stride, GFP_KERNEL_ACCOUNT);
	map->chains = is_hash(map) ? kvcalloc(chains, sizeof(*map->chains), GFP_KERNEL_ACCOUNT) : NULL;
	if (!map->entries || (is_hash(map) && !map->chains))
		return -ENOMEM;
	map->mask = chains - 1;
	for (i = 0; i < map->spec.entries; i++) {
		struct entry *entry = entry_at(map, i);

		entry->used = !is_hash(map);
		entry->next = is_hash(map) && i + 1 < map->spec.entries ? i + 2 : 0;
	}
	map->free = is_hash(map) ? 1 : 0;
	get_random_bytes(&map->secret, sizeof(map->secret));
	return 0;
}

static const struct file_operations map_operations;

/* Gives a descriptor of a new map. */
int cordon_map_create(const struct cordon_map_spec __user *argument)
{
	struct cordon_map *map;
	int result;

	if (!capable(CAP_SYS_MODULE))
		return -EPERM;
	map = kzalloc(sizeof(*map), GFP_KERNEL_ACCOUNT);
	if (!map)
		return -ENOMEM;
	kref_init(&map->users);
	raw_spin_lock_init(&map->lock);
	atomic64_inc(&cordon_maps_alive);
	result = copy_from_user(&map->spec, argument, sizeof(map->spec)) ? -EFAULT : is_sound(&map->spec) ? 0 : -EINVAL;
	if (!result) {
		map->value_at = sizeof(struct entry) + ALIGN(map->spec.key_bytes, 8);
		map->stride = map->value_at + ALIGN(map->spec.value_bytes, 8);
		result = fill(map);
	}
	if (!result)
		result = anon_inode_getfd("[cordon-map]", &map_operations, map, O_RDWR | O_CLOEXEC);
	if (result < 0)
		kref_put(&map->users, map_free);
	return result;
}

/* Makes a map one of the handler's. It stays that as long as the handler lives. */
int cordon_map_bind(struct cordon_handler *handler, const struct cordon_map_bind __user *argument)
{
	struct cordon_map_bind bind;
	struct cordon_map *map;
	struct file *file;
	int result = 0;

	if (copy_from_user(&bind, argument, sizeof(bind)))
		return -EFAULT;
	if (bind.number >= CORDON_MAPS)
		return -EINVAL;
	file = fget(bind.map);
	if (!file)
		return -EBADF;
	if (file->f_op != &map_operations) {
		result = -EINVAL;
	} else {
		map = file->private_data;
		kref_get(&map->users);
		if (cmpxchg(&handler->maps[bind.number], NULL, map)) {
			kref_put(&map->users, map_free);
			result = -EBUSY;
		}
	}
	fput(file);
	return result;
}

/* Nobody runs the handler any more. */
void cordon_maps_release(struct cordon_handler *handler)
{
	unsigned int i;

	for (i = 0; i < CORDON_MAPS; i++)
		if (handler->maps[i])
			kref_put(&handler->maps[i]->users, map_free);
	memset(handler->maps, 0, sizeof(handler->maps));
}

/* The first entry from the cursor on. */
static s64 next(struct cordon_map *map, struct cordon_map_access *access, u8 *key, u8 *value)
{
	u32 at;

	for (at = access->cursor; at < map->spec.entries; at++) {
		struct entry *entry = entry_at(map, at);
		unsigned long flags;
		bool found;

		if (!(at % 4096))
			cond_resched();
		if (!READ_ONCE(entry->used))
			continue;
		raw_spin_lock_irqsave(&map->lock, flags);
		found = entry->used;
		if (found) {
			if (is_hash(map))
				memcpy(key, entry->key, map->spec.key_bytes);
			else
				memcpy(key, &at, sizeof(at));
			memcpy(value, value_of(map, entry), map->spec.value_bytes);
		}
		raw_spin_unlock_irqrestore(&map->lock, flags);
		if (found) {
			access->cursor = at + 1;
			return 0;
		}
	}
	return -ENOENT;
}

static s64 operate(struct cordon_map *map, unsigned int command, struct cordon_map_access *access, u8 *key, u8 *value)
{
	unsigned long flags;
	s64 result = -ENOTTY;

	if (command == CORDON_MAP_NEXT)
		return next(map, access, key, value);
	raw_spin_lock_irqsave(&map->lock, flags);
	switch (command) {
	case CORDON_MAP_LOOKUP:
		result = lookup(map, key, value);
		break;
	case CORDON_MAP_UPDATE:
		result = update(map, key, value, access->flags);
		break;
	case CORDON_MAP_DELETE:
		result = delete(map, key);
		break;
	}
	raw_spin_unlock_irqrestore(&map->lock, flags);
	return result;
}

static long map_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct cordon_map_access __user *user = (void __user *)argument;
	bool gives = command == CORDON_MAP_LOOKUP || command == CORDON_MAP_NEXT;
	struct cordon_map *map = file->private_data;
	struct cordon_map_access access;
	u8 key[CORDON_MAP_KEY_BYTES], *value;
	s64 result = 0;

	if (copy_from_user(&access, user, sizeof(access)))
		return -EFAULT;
	value = kvmalloc(map->spec.value_bytes, GFP_KERNEL);
	if (!value)
		return -ENOMEM;
	if (command != CORDON_MAP_NEXT && copy_from_user(key, u64_to_user_ptr(access.key), map->spec.key_bytes))
		result = -EFAULT;
	if (command == CORDON_MAP_UPDATE && copy_from_user(value, u64_to_user_ptr(access.value), map->spec.value_bytes))
		result = -EFAULT;
	if (!result)
		result = operate(map, command, &access, key, value);
	if (!result && gives && copy_to_user(u64_to_user_ptr(access.value), value, map->spec.value_bytes))
		result = -EFAULT;
	if (!result && command == CORDON_MAP_NEXT &&
	    (copy_to_user(u64_to_user_ptr(access.key), key, map->spec.key_bytes) || put_user(access.cursor, &user->cursor)))
		result = -EFAULT;
	kvfree(value);
	return result;
}

static int map_release(struct inode *inode, struct file *file)
{
	struct cordon_map *map = file->private_data;

	kref_put(&map->users, map_free);
	return 0;
}

static const struct file_operations map_operations = {
	.owner = THIS_MODULE,
	.release = map_release,
	.unlocked_ioctl = map_ioctl,
	.llseek = noop_llseek,
};
