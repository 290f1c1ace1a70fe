/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* What /dev/cordon and the file descriptors of inserted handlers understand.
 *
 * CORDON_INSERT on /dev/cordon gives a new descriptor; the handler lives as long as it is open, or until CORDON_REMOVE if it is pinned. On that
 * descriptor: CORDON_RUN calls an entry; pread, pwrite and mmap work on window memory, file offset = window offset. */
#ifndef CORDON_H
#define CORDON_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define CORDON_NAME_BYTES 128

/* Why an image was not inserted (cordon_insert.verdict). */
enum cordon_verdict {
	CORDON_ACCEPTED = 0,
	CORDON_REJECTED = 1,   /* the checker: .rule and .offset tell */
	CORDON_BAD_FORMAT = 2, /* no image container */
	CORDON_BAD_NOTE = 3,
	CORDON_BAD_LAYOUT = 4,	 /* the layout does not hold for the kernel policy */
	CORDON_BAD_PLACE = 5,	 /* its stack is not the one that this module offers */
	CORDON_TOO_LARGE = 6,	 /* text, tables or memory beyond the limits */
	CORDON_NOT_METERED = 7,	 /* metered text was asked for */
	CORDON_INIT_STOPPED = 8, /* its constructors were stopped; .run tells */
	CORDON_NO_CPU = 9,	 /* uses what this CPU lacks; .offset = feature bit */
	CORDON_OVER_QUOTA = 10,	 /* more than an unprivileged user may have */
};

/* What stopped a call (cordon_run.kind); 0 = nothing, it returned. */
enum cordon_kind {
	CORDON_RETURNED = 0,
	CORDON_NULL_ZONE = 1,
	CORDON_UNMAPPED = 2,
	CORDON_READ_ONLY = 3,
	CORDON_DATA_STACK_OVERFLOW = 4,
	CORDON_NATIVE_STACK_OVERFLOW = 5,
	CORDON_DIVIDE = 6,
	CORDON_TRAP = 7,
	CORDON_BAD_CODE_POINTER = 8,
	CORDON_GATE_RANGE = 9,
	CORDON_TIME_LIMIT = 10,
	CORDON_FUEL = 11,
	CORDON_OTHER = 12,
	CORDON_BAD_JUMP = 13, /* longjmp to a place that does not wait for it */
};

/* cordon_run.flags: which of the fields hold something. */
#define CORDON_HAS_PLACE 1u
#define CORDON_HAS_ADDRESS 2u
#define CORDON_HAS_REGISTERS 4u
#define CORDON_IS_WRITE 8u
#define CORDON_IN_GATE 16u
#define CORDON_NO_INTERRUPTS 32u /* they were off */

#define CORDON_FRAMES 32

/* One call. Addresses are the handler's own: window offsets and text offsets, no address of the kernel. */
struct cordon_run {
	/* in */
	char entry[CORDON_NAME_BYTES];
	__u64 args[6];
	__u64 time_limit_ns; /* 0 = the module's default; at most its greatest */
	__u64 fuel;	     /* metered text: most instructions, 0 = 2^40; at most 2^22 where interrupts are off */
	/* out */
	__u64 result;
	__u64 elapsed_ns;
	__u64 fuel_used;
	__u32 kind; /* enum cordon_kind */
	__u32 flags;
	__u32 text_offset; /* of the instruction, or behind the call of a gate or bad pointer */
	__u32 access_bytes;
	__u64 address;	     /* as the registers say, 64 bits */
	__u64 window_offset; /* its low half, where the access went */
	__u64 registers[16]; /* rax rcx rdx rbx rsp(low half) rbp rsi rdi r8..r15 */
	/* Return addresses on the native stack, innermost first: text offset, and distance from the outermost return address in bytes. */
	__u32 frames;
	__u32 frame[CORDON_FRAMES];
	__u32 depth[CORDON_FRAMES];
	char gate[32];
	__u32 cpu; /* that it ran on */
};

struct cordon_insert {
	/* in */
	__u64 image; /* address and length of the image file */
	__u64 length;
	char name[CORDON_NAME_BYTES]; /* for lists, at will */
	__u32 flags;	/* CORDON_DEMAND_METERED, CORDON_PER_CPU */
	/* out */
	__u32 verdict;	/* enum cordon_verdict */
	__u32 rule;	/* number in SPEC.md */
	__u32 offset;	/* text offset */
	__u32 instructions;
	__u32 max_depth;
	__u64 features;
	struct cordon_run run; /* of the constructors */
};

#define CORDON_DEMAND_METERED 1u
/* A window for each CPU, so that calls on several do not miss. Each has its own data: at file offset CPU << 32 for pread, pwrite and mmap. */
#define CORDON_PER_CPU 2u

/* Counts since insertion. */
struct cordon_stats {
	__u64 calls;	/* begun */
	__u64 returned;
	__u64 stopped;	/* by faults, limits and gates */
	__u64 busy;	/* refused: the window was in use */
	__u64 refused;	/* refused for another reason: nested too deep, no watchdog, interrupts off without fuel */
	__u64 pages;	/* of window memory and tables */
	__u64 text_bytes;
};

/* Of the module. */
struct cordon_totals {
	__u64 handlers;
	__u64 inserted;	   /* ever */
	__u64 removed;
	__u64 arena_pages; /* in use */
	__u64 window_pages;
	__u64 table_entries; /* of the exception table */
	__u64 maps;
};

/* What calls an entry (cordon_attach.kind). */
enum cordon_event_kind {
	CORDON_NETFILTER = 0,  /* IPv4 packets of this network namespace at `hook`; result 0 drops */
	CORDON_KPROBE = 1,     /* an instruction of the kernel is reached: `offset` bytes into `name`; metered images only */
	CORDON_TRACEPOINT = 2, /* `name`; metered images only */
	CORDON_TIMER = 3,      /* every `period_ns` */
	CORDON_NETFILTER6 = 4, /* the same for IPv6 */
};

/* cordon_attach.flags: the handler may change packets (cordon_packet_store in cordon_handler.h says which bytes). */
#define CORDON_WRITABLE 1u

/* CORDON_ATTACH gives the event's number. It ends with CORDON_DETACH, or with the handler. */
struct cordon_attach {
	__u32 kind;
	__u32 hook;   /* enum nf_inet_hooks */
	__u32 flags;  /* CORDON_WRITABLE */
	__u32 bytes;  /* of a packet that are copied to the argument area, 0 = as many as it has room for */
	__u64 offset; /* of a kprobe */
	__u64 period_ns;
	__u64 time_limit_ns; /* of each call, and its fuel: as in cordon_run */
	__u64 fuel;
	char name[CORDON_NAME_BYTES];
	char entry[CORDON_NAME_BYTES];
};

struct cordon_event_stats {
	__u32 number; /* in; out with CORDON_OR_ABOVE */
	__u32 flags;  /* in */
	struct cordon_attach attach;
	__u64 fired;
	__u64 returned;
	__u64 stopped;
	__u64 missed; /* the window was in use, or the call refused */
	__u64 zero;   /* returned 0: packets dropped */
	__u64 changed; /* packets */
	__u64 unchanged; /* for want of memory, though the handler wanted it */
	struct cordon_run last; /* the last call that was stopped */
};

/* The event of that number, or if there is none the next one. */
#define CORDON_OR_ABOVE 1u

/* A handler in a list. Without CAP_SYS_MODULE one sees the unprivileged ones of one's own. */
struct cordon_about {
	__u32 id; /* in, CORDON_NEXT: the least one wanted; out */
	__u32 flags;
	__u32 uid; /* who inserted it */
	__u32 pid;
	char process[16];
	char name[CORDON_NAME_BYTES];
	__u32 events; /* attached */
	__u32 reserved;
	struct cordon_stats stats;
};

/* cordon_about.flags */
#define CORDON_PINNED 1u	/* lives without descriptors */
#define CORDON_ENDED 2u		/* removed; descriptors still hold its memory */
#define CORDON_UNPRIVILEGED 4u	/* inserted under the tighter limits */
/* Maps: tables in the kernel's memory that handlers and user space share. CORDON_MAP_CREATE on /dev/cordon gives a descriptor, CORDON_MAP_BIND
 * on a handler's makes it that handler's map of a number (0 .. 15), once. A map lives as long as a descriptor or a handler has it. */
enum cordon_map_kind {
	CORDON_MAP_ARRAY = 0, /* keys are 0 .. entries - 1 in four bytes; all values are there, 0 at first */
	CORDON_MAP_HASH = 1,
};

#define CORDON_MAPS 16
/* Greatest; all entries together have at most memory_limit_mb. */
#define CORDON_MAP_ENTRIES (1u << 20)
#define CORDON_MAP_KEY_BYTES 64
#define CORDON_MAP_VALUE_BYTES 4096

/* Flags of an update, as eBPF has them. */
#define CORDON_MAP_ANY 0
#define CORDON_MAP_NOEXIST 1
#define CORDON_MAP_EXIST 2

struct cordon_map_spec {
	__u32 kind; /* enum cordon_map_kind */
	__u32 key_bytes;
	__u32 value_bytes;
	__u32 entries;
	__u64 reserved; /* 0 */
};

struct cordon_map_bind {
	__u32 number;
	__s32 map; /* its descriptor */
};

/* On a map's descriptor. ENOENT: there is no such key, or none from the cursor on; ENOSPC: the map is full. */
struct cordon_map_access {
	__u64 key;   /* addresses of the key's and the value's bytes */
	__u64 value;
	__u64 flags; /* of an update */
	__u32 cursor; /* CORDON_MAP_NEXT: 0 at first; what it leaves is for the next call */
	__u32 reserved;
};

#define CORDON_INSERT _IOWR('K', 0xc0, struct cordon_insert)
#define CORDON_TOTALS _IOR('K', 0xc1, struct cordon_totals)
#define CORDON_RUN _IOWR('K', 0xc2, struct cordon_run)
#define CORDON_STATS _IOR('K', 0xc3, struct cordon_stats)
#define CORDON_ATTACH _IOW('K', 0xc4, struct cordon_attach)
#define CORDON_DETACH _IOW('K', 0xc5, __u32)
#define CORDON_EVENT _IOWR('K', 0xc6, struct cordon_event_stats)
/* On the device: a list, ENOENT behind its end; a descriptor of a listed handler; its end, events first. */
#define CORDON_NEXT _IOWR('K', 0xd0, struct cordon_about)
#define CORDON_OPEN _IOW('K', 0xd1, __u32)
#define CORDON_REMOVE _IOW('K', 0xd2, __u32)
/* On a handler's descriptor. A pinned handler holds the module. */
#define CORDON_ABOUT _IOR('K', 0xd3, struct cordon_about)
#define CORDON_PIN _IO('K', 0xd4)
#define CORDON_UNPIN _IO('K', 0xd5)
#define CORDON_MAP_CREATE _IOW('K', 0xe0, struct cordon_map_spec)
#define CORDON_MAP_BIND _IOW('K', 0xe1, struct cordon_map_bind)
#define CORDON_MAP_LOOKUP _IOW('K', 0xe2, struct cordon_map_access)
#define CORDON_MAP_UPDATE _IOW('K', 0xe3, struct cordon_map_access)
#define CORDON_MAP_DELETE _IOW('K', 0xe4, struct cordon_map_access)
#define CORDON_MAP_NEXT _IOWR('K', 0xe5, struct cordon_map_access)

#endif
