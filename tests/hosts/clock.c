/*
 * A clock that is off: preloaded into a program, shifts what it reads as real time by the nanoseconds found in a shared
 * file, which a test may change at any time. Everything else (monotonic time, sleeps, times of files) is left alone.
 * Programs that do not call the C library for the time (Go) are out of reach.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static int (*real_gettime)(clockid_t, struct timespec *);
static const volatile int64_t *offset;

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("AUSTRALIS_TEST_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *map = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);

	if (file >= 0)
		close(file);
	if (map == MAP_FAILED)
	{
		fprintf(stderr, "AUSTRALIS_TEST_CLOCK=%s cannot be read\n", path ? path : "");
		_exit(127);
	}
	real_gettime = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
	offset = map;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
	if (!real_gettime)
		real_gettime = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
	int result = real_gettime(clock, out);

	if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
	{
		int64_t now = out->tv_sec * SECOND + out->tv_nsec + *offset;

		out->tv_sec = now / SECOND;
		out->tv_nsec = now % SECOND;
	}
	return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
	struct timespec now;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &now);
	out->tv_sec = now.tv_sec;
	out->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *out)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}
