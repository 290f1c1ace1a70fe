// SPDX-License-Identifier: GPL-2.0
/* The device, insertion and the descriptors of handlers. */
#include <asm/cpufeature.h>
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include "internal.h"

DEFINE_MUTEX(cordon_lock);
LIST_HEAD(cordon_handlers);
u64 cordon_arena_pages_used, cordon_window_pages_used, cordon_table_entries_used;
unsigned long cordon_memory_limit_mb = 64;
static u64 inserted, removed;

module_param_named(time_limit_ms, cordon_time_limit_ms, ulong, 0644);
MODULE_PARM_DESC(time_limit_ms, "time that a call may take if it does not ask for a limit of its own (100)");
module_param_named(time_limit_max_ms, cordon_time_limit_max_ms, ulong, 0644);
MODULE_PARM_DESC(time_limit_max_ms, "greatest limit that a call may ask for (5000)");
module_param_named(memory_limit_mb, cordon_memory_limit_mb, ulong, 0644);
MODULE_PARM_DESC(memory_limit_mb, "memory that one handler, or one map, may have (64)");
module_param_named(log_lines, cordon_log_lines, uint, 0644);
MODULE_PARM_DESC(log_lines, "lines that a handler may log in 5 s (20)");

/* The extensions of the kernel policy (checker/src/policy.rs) and what the CPU calls them. */
static const struct {
	u32 feature, cpu;
} features[] = {
	{ 7, X86_FEATURE_POPCNT }, { 15, X86_FEATURE_BMI1 }, { 16, X86_FEATURE_BMI2 }, { 17, X86_FEATURE_ABM },
	{ 18, X86_FEATURE_ADX },   { 19, X86_FEATURE_MOVBE }, { 21, X86_FEATURE_3DNOWPREFETCH },
};

/* The lowest feature that the text uses and this CPU or this table has not; -1 if there is none. */
static int lacking(u64 used)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(features); i++)
		if (boot_cpu_has(features[i].cpu))
			used &= ~(1ULL << features[i].feature);
	return used ? __ffs64(used) : -1;
}

/* Takes apart what insertion put together, finished or not. Needs cordon_lock; nobody runs the handler. */
static void take_apart(struct cordon_handler *handler)
{
	cordon_text_remove(handler);
	cordon_window_pages_used -= handler->window_pages;
	cordon_window_free(handler);
	cordon_maps_release(handler);
	kvfree(handler->gates);
	kvfree(handler->note);
	kvfree(handler);
}

/* Bytes of a window's memory and table. */
static u64 memory_of(const struct cordon_image *image)
{
	u64 bytes = image->table_end - image->table;
	u32 i;

	for (i = 0; i < image->regions; i++)
		bytes += image->region[i].end - image->region[i].start;
	return bytes;
}

static u32 windows_of(const struct cordon_handler *handler)
{
	return handler->windows == 1 ? 1 : num_possible_cpus();
}

static bool fits(const struct cordon_handler *handler)
{
	const struct cordon_image *image = &handler->image;

	return memory_of(image) * windows_of(handler) <= (u64)READ_ONCE(cordon_memory_limit_mb) << 20 &&
	       image->text_length <= cordon_text_limit(handler);
}

static int resolve_imports(struct cordon_handler *handler)
{
	u32 count = handler->image.imports, i;

	handler->gates = kvcalloc(max(count, 1u), sizeof(*handler->gates), GFP_KERNEL_ACCOUNT);
	if (!handler->gates)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		const u8 *name;
		size_t length = cordon_rs_import(handler->note, handler->image.note_length, i, &name);

		/* What is not offered traps, as in the user-mode loader. */
		handler->gates[i] = cordon_may_import(handler, name, length) ? cordon_gate_address(name, length) : 0;
		handler->gates[i] = handler->gates[i] ?: cordon_trap(handler);
	}
	return 0;
}

/* Judges the file's text to learn its size in instructions, places it, and judges it again where it will run. */
static u32 judge(struct cordon_handler *handler, const u8 *file, bool metered, u64 *scratch, struct cordon_insert *insert)
{
	struct cordon_image *image = &handler->image;
	const u8 *text = file + image->text_offset;
	struct cordon_judgement judgement = {};
	u32 verdict = cordon_rs_check(text, image->text_length, handler->note, image->note_length, metered, scratch, &judgement);
	int feature;

	if (!verdict) {
		feature = lacking(judgement.features);
		insert->offset = max(feature, 0);
		if (feature >= 0)
			return CORDON_NO_CPU;
		if (!cordon_within_quota(handler, memory_of(image) * windows_of(handler), cordon_text_bytes(image->text_length, judgement.instructions),
					 judgement.instructions))
			return CORDON_OVER_QUOTA;
		verdict = cordon_text_place(handler, text, judgement.instructions);
		if (verdict)
			return verdict;
		verdict = cordon_rs_check(handler->text, image->text_length, handler->note, image->note_length, metered, scratch, &judgement);
	}
	insert->rule = judgement.rule;
	insert->offset = judgement.offset;
	insert->instructions = judgement.instructions;
	insert->max_depth = judgement.max_depth;
	insert->features = judgement.features;
	return verdict;
}

/* Needs cordon_lock. */
static int build(struct cordon_handler *handler, const u8 *file, size_t length, struct cordon_insert *insert)
{
	bool metered = insert->flags & CORDON_DEMAND_METERED;
	struct cordon_image *image = &handler->image;
	u64 *scratch;
	int failed;

	insert->verdict = cordon_rs_read(file, length, metered, image);
	if (!insert->verdict && !fits(handler))
		insert->verdict = CORDON_TOO_LARGE;
	if (insert->verdict)
		return -EINVAL;
	handler->note = kvmalloc(image->note_length, GFP_KERNEL_ACCOUNT);
	scratch = kvmalloc_array(image->text_length, sizeof(*scratch), GFP_KERNEL);
	failed = handler->note && scratch ? 0 : -ENOMEM;
	if (!failed) {
		memcpy(handler->note, file + image->note_offset, image->note_length);
		insert->verdict = judge(handler, file, metered, scratch, insert);
		failed = insert->verdict ? -EINVAL : resolve_imports(handler);
	}
	if (!failed)
		failed = cordon_window_make(handler, file, memory_of(image));
	cordon_window_pages_used += handler->window_pages;
	if (!failed)
		failed = cordon_text_arm(handler, scratch);
	kvfree(scratch);
	return failed;
}

/* Runs the constructors, in each window. */
static int initialise(struct cordon_handler *handler, struct cordon_insert *insert)
{
	static const u8 name[] = "cordon.init";
	s64 entry = cordon_rs_entry(handler->note, handler->image.note_length, name, sizeof(name) - 1);
	int failed = 0;
	u32 i;

	memset(&insert->run, 0, sizeof(insert->run));
	for (i = 0; entry >= 0 && i < handler->windows && !failed; i++) {
		if (!handler->window[i])
			continue;
		failed = cordon_run_in(handler, handler->window[i], entry, &insert->run);
		if (!failed && insert->run.kind) {
			insert->verdict = CORDON_INIT_STOPPED;
			failed = -EINVAL;
		}
	}
	return failed;
}

/* Nobody holds it any more. */
void cordon_destroy(struct cordon_handler *handler)
{
	cordon_events_detach(handler);
	mutex_lock(&cordon_lock);
	take_apart(handler);
	removed++;
	mutex_unlock(&cordon_lock);
}

static int handler_release(struct inode *inode, struct file *file)
{
	cordon_put(file->private_data);
	return 0;
}

static long handler_run(struct cordon_handler *handler, void __user *argument)
{
	struct cordon_run *run = memdup_user(argument, sizeof(*run));
	s64 entry;
	long result;

	if (IS_ERR(run))
		return PTR_ERR(run);
	if (READ_ONCE(handler->ended)) {
		kfree(run);
		return -ENODEV;
	}
	entry = cordon_rs_entry(handler->note, handler->image.note_length, run->entry, strnlen(run->entry, sizeof(run->entry)));
	result = entry < 0 ? -ENOENT : cordon_run(handler, entry, run);
	if (!result && copy_to_user(argument, run, sizeof(*run)))
		result = -EFAULT;
	kfree(run);
	return result;
}

static long handler_attach(struct cordon_handler *handler, void __user *argument)
{
	struct cordon_attach *wanted = memdup_user(argument, sizeof(*wanted));
	long result;

	if (IS_ERR(wanted))
		return PTR_ERR(wanted);
	result = capable(CAP_SYS_MODULE) ? cordon_event_attach(handler, wanted) : -EPERM;
	kfree(wanted);
	return result;
}

static long handler_event(struct cordon_handler *handler, void __user *argument)
{
	struct cordon_event_stats *stats = memdup_user(argument, sizeof(*stats));
	long result;

	if (IS_ERR(stats))
		return PTR_ERR(stats);
	result = cordon_event_tell(handler, stats);
	if (!result && copy_to_user(argument, stats, sizeof(*stats)))
		result = -EFAULT;
	kfree(stats);
	return result;
}

static long handler_about(struct cordon_handler *handler, void __user *argument)
{
	struct cordon_about about;

	cordon_tell(handler, &about);
	return copy_to_user(argument, &about, sizeof(about)) ? -EFAULT : 0;
}

static long handler_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct cordon_handler *handler = file->private_data;
	struct cordon_stats stats;
	u32 number;

	switch (command) {
	case CORDON_RUN:
		return handler_run(handler, (void __user *)argument);
	case CORDON_ATTACH:
		return handler_attach(handler, (void __user *)argument);
	case CORDON_DETACH:
		return get_user(number, (u32 __user *)argument) ?: cordon_event_detach(handler, number);
	case CORDON_EVENT:
		return handler_event(handler, (void __user *)argument);
	case CORDON_ABOUT:
		return handler_about(handler, (void __user *)argument);
	case CORDON_PIN:
		return cordon_pin(handler);
	case CORDON_UNPIN:
		if (!capable(CAP_SYS_MODULE))
			return -EPERM;
		cordon_unpin(handler);
		return 0;
	case CORDON_MAP_BIND:
		return cordon_map_bind(handler, (const struct cordon_map_bind __user *)argument);
	case CORDON_STATS:
		cordon_count(handler, &stats);
		return copy_to_user((void __user *)argument, &stats, sizeof(stats)) ? -EFAULT : 0;
	}
	return -ENOTTY;
}

/* Copies between user space and window memory, up to the first byte that is not there or may not be written. */
static ssize_t transfer(struct cordon_handler *handler, char __user *user, size_t length, loff_t *position, bool write)
{
	size_t done = 0;

	while (done < length) {
		u64 at = *position;
		size_t in_page = at & ~PAGE_MASK, part = min_t(size_t, length - done, PAGE_SIZE - in_page);
		struct page *page = cordon_window_page(handler, at & PAGE_MASK, write);
		void *memory = page ? page_address(page) + in_page : NULL;

		if (!page || (write ? copy_from_user(memory, user + done, part) : copy_to_user(user + done, memory, part)))
			break;
		done += part;
		*position += part;
	}
	return done || !length ? (ssize_t)done : -EFAULT;
}

static ssize_t handler_read(struct file *file, char __user *to, size_t length, loff_t *position)
{
	return transfer(file->private_data, to, length, position, false);
}

static ssize_t handler_write(struct file *file, const char __user *from, size_t length, loff_t *position)
{
	return transfer(file->private_data, (char __user *)from, length, position, true);
}

static void forbid(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_clear(vma, flags);
#else
	vma->vm_flags &= ~flags;
#endif
}

/* Maps window memory, all of it from the file offset on; the pages live as long as either side has them. */
static int handler_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct cordon_handler *handler = file->private_data;
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT, at;
	unsigned long forbidden = VM_MAYEXEC;
	bool write = vma->vm_flags & VM_WRITE;

	if (!(vma->vm_flags & VM_SHARED) || vma->vm_flags & VM_EXEC)
		return -EINVAL;
	for (at = vma->vm_start; at < vma->vm_end; at += PAGE_SIZE, offset += PAGE_SIZE) {
		struct page *page = cordon_window_page(handler, offset, write);
		int failed = page ? vm_insert_page(vma, at, page) : -ENXIO;

		if (failed)
			return failed;
		/* mprotect must not make writable what was mapped to be read. */
		if (!cordon_window_page(handler, offset, true))
			forbidden |= VM_MAYWRITE;
	}
	forbid(vma, forbidden);
	return 0;
}

static const struct file_operations handler_operations = {
	.owner = THIS_MODULE,
	.release = handler_release,
	.unlocked_ioctl = handler_ioctl,
	.read = handler_read,
	.write = handler_write,
	.mmap = handler_mmap,
	.llseek = default_llseek,
};

/* A descriptor, which takes over what holds the handler; on failure the caller keeps that. */
static int publish(struct cordon_handler *handler)
{
	struct file *file;
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		return fd;
	file = anon_inode_getfile("[cordon]", &handler_operations, handler, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	file->f_mode |= FMODE_PREAD | FMODE_PWRITE | FMODE_LSEEK;
	fd_install(fd, file);
	return fd;
}

static int insert_file(const u8 *file, size_t length, struct cordon_insert *insert)
{
	struct cordon_handler *handler = kvzalloc(sizeof(*handler), GFP_KERNEL_ACCOUNT);
	int result;

	if (!handler)
		return -ENOMEM;
	cordon_introduce(handler, insert->name);
	INIT_LIST_HEAD(&handler->list);
	handler->windows = insert->flags & CORDON_PER_CPU ? nr_cpu_ids : 1;
	mutex_init(&handler->events_lock);
	INIT_LIST_HEAD(&handler->events);
	mutex_lock(&cordon_lock);
	cordon_arena_init();
	result = build(handler, file, length, insert);
	if (!result)
		inserted++;
	else
		take_apart(handler);
	mutex_unlock(&cordon_lock);
	if (result)
		return result;
	result = initialise(handler, insert);
	if (!result)
		result = cordon_register(handler);
	if (!result)
		result = publish(handler);
	if (result < 0)
		cordon_put(handler);
	return result;
}

static long insert(struct cordon_insert __user *argument)
{
	struct cordon_insert *insert;
	u8 *file = NULL;
	long result;

	if (!cordon_may_insert())
		return -EPERM;
	insert = memdup_user(argument, sizeof(*insert));
	if (IS_ERR(insert))
		return PTR_ERR(insert);
	insert->verdict = insert->rule = insert->offset = 0;
	insert->name[sizeof(insert->name) - 1] = 0;
	if (insert->flags & ~(CORDON_DEMAND_METERED | CORDON_PER_CPU) || !insert->length)
		result = -EINVAL;
	else if (insert->length > cordon_image_limit())
		result = -EFBIG;
	else {
		file = vmemdup_user(u64_to_user_ptr(insert->image), insert->length);
		result = IS_ERR(file) ? PTR_ERR(file) : insert_file(file, insert->length, insert);
		if (!IS_ERR(file))
			kvfree(file);
	}
	if (copy_to_user(argument, insert, sizeof(*insert)) && result < 0)
		result = -EFAULT;
	kfree(insert);
	return result;
}

/* The first of the caller's handlers whose number is as great as the given one. */
static long next_handler(struct cordon_about __user *argument)
{
	struct cordon_handler *handler;
	struct cordon_about about;
	u32 id;

	if (get_user(id, &argument->id))
		return -EFAULT;
	handler = cordon_get(id, true);
	if (!handler)
		return -ENOENT;
	cordon_tell(handler, &about);
	cordon_put(handler);
	return copy_to_user(argument, &about, sizeof(about)) ? -EFAULT : 0;
}

/* A descriptor of a handler, or its end. */
static long open_or_remove(u32 __user *argument, bool open)
{
	struct cordon_handler *handler;
	long result = 0;
	u32 id;

	if (get_user(id, argument))
		return -EFAULT;
	handler = cordon_get(id, false);
	if (!handler)
		return -ENOENT;
	if (open)
		result = publish(handler);
	else
		cordon_end(handler);
	/* A new descriptor takes over what holds the handler here. */
	if (!open || result < 0)
		cordon_put(handler);
	return result;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct cordon_totals totals = {};
	struct cordon_handler *handler;

	/* The exception table is not final before. */
	if (THIS_MODULE->state != MODULE_STATE_LIVE)
		return -EAGAIN;
	switch (command) {
	case CORDON_INSERT:
		return insert((struct cordon_insert __user *)argument);
	case CORDON_NEXT:
		return next_handler((struct cordon_about __user *)argument);
	case CORDON_OPEN:
	case CORDON_REMOVE:
		return open_or_remove((u32 __user *)argument, command == CORDON_OPEN);
	case CORDON_MAP_CREATE:
		return cordon_map_create((const struct cordon_map_spec __user *)argument);
	case CORDON_TOTALS:
		mutex_lock(&cordon_lock);
		list_for_each_entry(handler, &cordon_handlers, list)
			totals.handlers++;
		totals.inserted = inserted;
		totals.removed = removed;
		totals.arena_pages = cordon_arena_pages_used;
		totals.window_pages = cordon_window_pages_used;
		totals.table_entries = cordon_table_entries_used;
		totals.maps = atomic64_read(&cordon_maps_alive);
		mutex_unlock(&cordon_lock);
		return copy_to_user((void __user *)argument, &totals, sizeof(totals)) ? -EFAULT : 0;
	}
	return -ENOTTY;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "cordon",
	.mode = 0600,
	.fops = &device_operations,
};

static int __init cordon_init(void)
{
	int failed = cordon_symbols_find();

	if (failed)
		return failed;
	failed = cordon_arena_clear();
	if (!failed)
		failed = cordon_stacks_init();
	if (failed)
		return failed;
	cordon_host_init();
	failed = cordon_watchdog_init();
	if (failed)
		goto stacks;
	failed = misc_register(&device);
	if (failed)
		goto watchdog;
	return 0;
watchdog:
	cordon_watchdog_exit();
stacks:
	cordon_stacks_exit();
	return failed;
}

/* Descriptors and pins of handlers hold the module, so no handler is left. */
static void __exit cordon_exit(void)
{
	misc_deregister(&device);
	cordon_host_exit();
	cordon_watchdog_exit();
	cordon_stacks_exit();
}

module_init(cordon_init);
module_exit(cordon_exit);
MODULE_DESCRIPTION("Runs checked native handlers in the kernel");
MODULE_LICENSE("Dual MIT/GPL");
