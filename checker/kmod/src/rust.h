/* SPDX-License-Identifier: GPL-2.0 */
/* The Rust half (../rust): pure functions over the caller's memory; none sleeps, allocates or keeps anything. */
#ifndef CORDON_RUST_H
#define CORDON_RUST_H

#include <linux/types.h>

#define CORDON_REGIONS 64
#define CORDON_SEGMENTS 64

enum cordon_region_kind { CORDON_RODATA, CORDON_DATA, CORDON_ARGUMENT, CORDON_HEAP, CORDON_STACK };

struct cordon_region {
	u32 start, end, kind;
};

/* Bytes of the file that go to window memory. */
struct cordon_segment {
	u32 start, length;
	u64 offset;
};

/* An image file whose container and layout hold; its text is not judged. */
struct cordon_image {
	u64 text_offset, text_length, note_offset, note_length;
	s32 table, table_end;
	u32 max_depth, limit;
	u32 imports, metered;
	u32 regions, segments;
	struct cordon_region region[CORDON_REGIONS];
	struct cordon_segment segment[CORDON_SEGMENTS];
};

struct cordon_judgement {
	u32 rule, offset, instructions, max_depth;
	u64 features;
};

/* What a report says of one instruction and the registers in front of it. */
struct cordon_facts {
	u32 kind; /* enum cordon_kind */
	u32 has_address, is_write, bytes;
	u64 address, offset;
};

/* These return an enum cordon_verdict. */
u32 cordon_rs_read(const u8 *file, size_t length, u32 demand_metered, struct cordon_image *out);
u32 cordon_rs_check(const u8 *text, size_t length, const u8 *note, size_t note_length, u32 demand_metered, u64 *scratch,
		    struct cordon_judgement *out);

/* First instruction start at or after `from` in accepted text, or `length`. */
size_t cordon_rs_next_start(const u64 *scratch, size_t length, size_t from);

/* What the checker knows in front of an instruction, from its scratch word: depth in words << 16 | which of the first 16 slots are pushed. */
u32 cordon_rs_state(u64 word);

/* Fills `words` table words: text slots with `text` + offset, imports with their gate, all else with `trap`. */
void cordon_rs_tables(const u8 *note, size_t note_length, u64 *table, size_t words, u64 text, u64 trap, const u64 *gates);

/* Text offset of the entry of this name, -1 if there is none. */
s64 cordon_rs_entry(const u8 *note, size_t note_length, const u8 *name, size_t name_length);

/* Name of import `index`; its length, 0 if there is none. */
size_t cordon_rs_import(const u8 *note, size_t note_length, u32 index, const u8 **name);

/* Why the instruction at text offset `at` of accepted text faulted. */
void cordon_rs_explain(const u8 *text, size_t length, const u8 *note, size_t note_length, u32 at, const u64 *registers,
		       struct cordon_facts *out);

/* What an access to `offset` means, given the regions. */
u32 cordon_rs_kind_at(const u8 *note, size_t note_length, u64 offset, u32 is_write);

#endif
