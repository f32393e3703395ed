// Preloaded into programs that a test gives a clock of its own: seconds are added to the time of day, read from a file that the test writes.
// How time passes does not change. By system calls, since an allocator may ask for the time before libc is ready.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static long long ahead(void)
{
    static _Atomic(const volatile long long *) seconds;
    const volatile long long *mapped = seconds;
    if (!mapped) {
        const char *file = getenv("WRONG_CLOCK");
        int fd = file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC) : -1;
        if (fd < 0)
            return 0;
        void *page = (void *)syscall(SYS_mmap, NULL, sizeof(long long), PROT_READ, MAP_SHARED, fd, 0);
        syscall(SYS_close, fd);
        if (page == MAP_FAILED)
            return 0;
        seconds = mapped = page;
    }
    return *mapped;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += ahead();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec t;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &t) != 0)
        return -1;
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (now)
        *now = t.tv_sec;
    return t.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}

// What waits until a time of day is given the kernel's, unless it goes by the monotonic clock.
static struct timespec by_kernel(const struct timespec *until)
{
    struct timespec t = *until;
    if (t.tv_sec > 1000000000)
        t.tv_sec -= ahead();
    return t;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec t = by_kernel(until);
    if (!real)
        real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return real(condition, mutex, &t);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until)
{
    static int (*real)(cnd_t *, mtx_t *, const struct timespec *);
    struct timespec t = by_kernel(until);
    if (!real)
        real = dlsym(RTLD_NEXT, "cnd_timedwait");
    return real(condition, mutex, &t);
}
