/* What single operations are measured with. */
#include "fixture.h"

#ifdef __wasm__
__attribute__((import_module("env"), import_name("host_add")))
#endif
extern int host_add(int a, int b);

long micro_empty(void *ctx, unsigned long len)
{
	(void)ctx;
	return (long)len;
}

/* Calls the host `n` times. */
long micro_host(void *ctx, unsigned long len, unsigned long n)
{
	int sum = (int)len;
	(void)ctx;
	while (n--)
		sum = host_add(sum, 3);
	return sum;
}

/* Reads where nothing is. */
long micro_fault(void *ctx, unsigned long len)
{
#ifdef __wasm__
	volatile int *nowhere = (volatile int *)0xfffffff0ul;
#else
	volatile int *volatile nowhere = 0;
#endif
	(void)ctx, (void)len;
	return *nowhere;
}

long micro_spin(void *ctx, unsigned long len)
{
	(void)ctx, (void)len;
	for (;;)
		__asm__ volatile("");
}
