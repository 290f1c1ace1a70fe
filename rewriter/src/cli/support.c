/* What `cordon cc` links in front of the C library: functions of musl that reach behind the compiler's back and have no fenced form. Weak, so that
 * a program's own go before them. */
#include <errno.h>
#include <unistd.h>

#define WEAK __attribute__((weak))

/* musl's own way to make threads and child processes: gives a thread number or a negative error number. */
WEAK int __clone(int (*function)(void *), void *stack, int flags, void *argument, ...)
{
	(void)function, (void)stack, (void)flags, (void)argument;
	return -ENOSYS;
}

WEAK pid_t vfork(void)
{
	errno = ENOSYS;
	return -1;
}

/* musl's passes its return address on, by which a dynamic linker would know the caller. */
void *__dlsym(void *restrict library, const char *restrict name, void *restrict caller);

WEAK void *dlsym(void *restrict library, const char *restrict name)
{
	return __dlsym(library, name, 0);
}
