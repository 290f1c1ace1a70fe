/* setjmp and longjmp, honest and not; cpuid. */
#include "cordon_handler.h"

typedef unsigned u32;
typedef unsigned long u64;

typedef u64 record[8];

int setjmp(record) __attribute__((returns_twice));
void longjmp(record, int) __attribute__((noreturn));

#define HEAP ((volatile u64 *)__cordon_heap_start)

static record kept;

static __attribute__((noinline)) long deep(record to, long depth, long value)
{
	volatile long here = depth;

	if (depth < 0)
		return here;
	if (!depth)
		longjmp(to, (int)value);
	return deep(to, depth - 1, value) + here;
}

/* Comes back from `depth` calls below, `times` times; all its own variables stay. */
long rounds(u64 depth, u64 times)
{
	volatile u64 count = 0;
	volatile u64 a = depth * 3, b = times * 5;
	record here;
	int value = setjmp(here);

	if (value)
		count += (u64)value;
	if (count < times)
		deep(here, (long)depth, 1);
	return (long)(count + a + b);
}

/* 0 becomes 1. */
long zero(void)
{
	record here;
	int value = setjmp(here);

	if (!value)
		longjmp(here, 0);
	return value;
}

static __attribute__((noinline)) long leave(void) { return setjmp(kept) + 100; }

/* To a function that has returned. */
long gone(void)
{
	if (leave() == 100)
		longjmp(kept, 5);
	return 1;
}

/* To a record of an earlier call, or of what user space wrote there. */
long stale(void) { longjmp(kept, 5); }

long keep(void)
{
	long value = setjmp(kept);

	for (u64 i = 0; i < 8; i++)
		HEAP[i] = kept[i];
	return value;
}

/* A record with one word changed. */
long forged(u64 word, u64 value)
{
	volatile u64 tries = 0;
	record here;

	if (setjmp(here))
		return (long)tries;
	here[word & 7] = value;
	tries++;
	longjmp(here, 1);
}

/* Another's place, with one's own frame. */
long crossed(u64 word)
{
	record here;

	if (setjmp(kept))
		return 2;
	if (setjmp(here))
		return 3;
	here[word & 7] = kept[word & 7];
	longjmp(here, 1);
}

long outside(u64 at) { longjmp((void *)at, 1); }

u64 identify(u32 leaf, u32 sub)
{
	u32 a = leaf, b, c = sub, d;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	HEAP[0] = a;
	HEAP[1] = b;
	HEAP[2] = c;
	HEAP[3] = d;
	return a;
}
