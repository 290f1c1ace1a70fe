/* SPDX-License-Identifier: GPL-2.0 */
/* Sizes of what the module has once. */
#ifndef CORDON_LAYOUT_H
#define CORDON_LAYOUT_H

/* Checked text and the stubs of its instructions. */
#define CORDON_ARENA_BYTES 0x200000
/* Entries of the exception table: one for each instruction of all handlers, and the module's own. */
#define CORDON_EXTABLE_ENTRIES 0x30000

/* Functions of the host that images may import; gates.c names them. */
#define CORDON_GATES 41

#endif
