/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  This query processor's shared memory, and the cluster's shared page.
 *
 * The shared page (docs/formats.md, section 7) is a file that the commit and
 * storage services write and every backend maps: it tells the newest
 * acknowledged time, so that taking a snapshot costs two loads.  A backend's
 * slot in it tells storage which old versions are still read; a slot of a
 * dead process is ignored there, since it holds a pid.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include <fcntl.h>
#include <limits.h>
#ifdef __linux__
#include <linux/futex.h>
#endif
#include <sys/mman.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <time.h>
#include <unistd.h>

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"

#define PAGE_SLOT_COUNT 1024	/* per query processor */
#define PAGE_SIZE_BYTES (4096 + AU_PROCESSORS_MAX * PAGE_SLOT_COUNT * 16)
#define PAGE_WORD_CLUSTER 1

typedef struct AuShared
{
	pg_atomic_uint64 insert_stamp;
} AuShared;

static AuShared *shared = NULL;
static volatile int64 *page = NULL;
static shmem_request_hook_type prev_shmem_request = NULL;
static shmem_startup_hook_type prev_shmem_startup = NULL;

static void
shmem_request(void)
{
	if (prev_shmem_request)
		prev_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(AuShared)));
	RequestAddinShmemSpace(au_ddl_shmem_size());
	RequestAddinShmemSpace(au_oids_shmem_size());
	RequestAddinShmemSpace(au_peers_shmem_size());
	RequestAddinShmemSpace(au_statistics_shmem_size());
}

static void
shmem_startup(void)
{
	bool		found;

	if (prev_shmem_startup)
		prev_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("australis", sizeof(AuShared), &found);
	if (!found)
	{
		struct timespec now;

		/*
		 * Hidden keys keep insertion order.  Starting from the wall clock
		 * makes them increase across restarts too: nobody inserts a row per
		 * nanosecond.
		 */
		clock_gettime(CLOCK_REALTIME, &now);
		pg_atomic_init_u64(&shared->insert_stamp,
						   (uint64) now.tv_sec * UINT64CONST(1000000000) + now.tv_nsec);
	}
	au_oids_shmem_init();
	au_peers_shmem_init();
	au_statistics_shmem_init();
	LWLockRelease(AddinShmemInitLock);
	au_ddl_shmem_init();
}

void
au_shmem_init(void)
{
	prev_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* The slot of a process of this query processor: the index of its first word. */
static inline int
slot_of(ProcNumber process)
{
	return PAGE_SLOTS + 2 * (au_processor * PAGE_SLOT_COUNT + process);
}

static void
release_slot(int code, Datum arg)
{
	if (page && MyProcNumber >= 0 && MyProcNumber < PAGE_SLOT_COUNT)
		page[slot_of(MyProcNumber)] = 0;
}

static void
map_page(void)
{
	char		path[MAXPGPATH];
	struct stat st;
	void	   *p;
	int			fd;

	if (!au_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this server is not part of a cluster"),
				 errhint("Set australis.run_directory.")));
	snprintf(path, sizeof(path), "%s/page", au_run_directory);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size < PAGE_SIZE_BYTES)
	{
		if (fd >= 0)
			close(fd);
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the cluster's shared page \"%s\" is not there", path),
				 errhint("Are the cluster's services running?")));
	}
	p = mmap(NULL, PAGE_SIZE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not map \"%s\": %m", path)));
	if (memcmp(p, "AUSPAGE1", 8) != 0)
	{
		munmap(p, PAGE_SIZE_BYTES);
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("\"%s\" is not a shared page of this version", path)));
	}
	if (MyProcNumber >= PAGE_SLOT_COUNT)
	{
		munmap(p, PAGE_SIZE_BYTES);
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_CONNECTIONS),
				 errmsg("more than %d processes in one query processor", PAGE_SLOT_COUNT)));
	}
	page = p;
	page[slot_of(MyProcNumber)] = 0;
	page[slot_of(MyProcNumber) + 1] = MyProcPid;
	before_shmem_exit(release_slot, 0);
}

/* Is there a page to look at? */
bool
au_page_there(void)
{
	char		path[MAXPGPATH];

	if (page != NULL)
		return true;
	snprintf(path, sizeof(path), "%s/page", au_run_directory);
	return au_enabled && MyProcNumber >= 0 && access(path, R_OK | W_OK) == 0;
}

static inline volatile int64 *
the_page(void)
{
	if (unlikely(page == NULL))
		map_page();
	return page;
}

/* Are there other hosts, whose commits our page does not know at once? */
bool
au_behind_gateway(void)
{
	return the_page()[PAGE_GATEWAY] != 0;
}

int64
au_page_read(PageWord word)
{
	int64		v = the_page()[word];

	pg_read_barrier();
	return v;
}

/*
 * Sleep until the owner of a word says that it has another value than `seen`,
 * a signal comes, or `ms` have passed.  The kernel compares the low half only,
 * and a signal may come just before we sleep: hence callers loop, and `ms` is
 * short.
 */
void
au_page_wait(PageWord word, int64 seen, int ms)
{
#ifdef __linux__
	struct timespec timeout = {ms / 1000, (long) (ms % 1000) * 1000000};
	volatile int64 *p = the_page() + word;

	/* any result means: look again */
	(void) syscall(SYS_futex, p, FUTEX_WAIT, (uint32) seen, &timeout, NULL, 0);
#else
	if (au_page_read(word) == seen)
		pg_usleep(100);
#endif
}

void
au_page_write(PageWord word, int64 value)
{
	pg_write_barrier();
	the_page()[word] = value;
	pg_memory_barrier();
}

void
au_page_add(PageWord word, int64 value)
{
	(void) __atomic_fetch_add((int64 *) the_page() + word, value, __ATOMIC_SEQ_CST);
}

/* Wake those who sleep in au_page_wait on this word. */
void
au_page_wake(PageWord word)
{
#ifdef __linux__
	(void) syscall(SYS_futex, the_page() + word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
#endif
}

const uint8 *
au_page_cluster(void)
{
	return (const uint8 *) (the_page() + PAGE_WORD_CLUSTER);
}

void
au_page_snapshot(Tau *acked, int64 *ddl)
{
	volatile int64 *p = the_page();
	int			spins = 0;

	for (;;)
	{
		int64		before = p[PAGE_SEQLOCK];

		pg_read_barrier();
		*acked = p[PAGE_ACKED];
		*ddl = p[PAGE_DDL];
		pg_read_barrier();
		if ((before & 1) == 0 && p[PAGE_SEQLOCK] == before)
			return;
		/* the writer may have been killed in the middle: its successor mends */
		if (++spins % 1000 == 0)
		{
			CHECK_FOR_INTERRUPTS();
			pg_usleep(1000);
			if (spins > 1000 * au_service_timeout_ms)
				ereport(ERROR,
						(errcode(ERRCODE_CANNOT_CONNECT_NOW),
						 errmsg("the commit service is not available")));
		}
	}
}

void
au_page_set_slot(Tau tau_start)
{
	the_page()[slot_of(MyProcNumber)] = tau_start;
	pg_memory_barrier();
}

/* The snapshot time of another process of this query processor, 0: none. */
Tau
au_page_slot_of(ProcNumber process)
{
	Assert(process >= 0 && process < PAGE_SLOT_COUNT);
	return the_page()[slot_of(process)];
}

/*
 * No transaction of this query processor reads as of an earlier time, but for
 * one that is taking its snapshot right now.  INT64_MAX: there is none.
 */
Tau
au_page_oldest_snapshot(void)
{
	volatile int64 *p = the_page();
	Tau			oldest = INT64_MAX;

	for (int i = 0; i < PAGE_SLOT_COUNT; i++)
	{
		Tau			tau = p[slot_of(i)];

		if (tau != 0)
			oldest = Min(oldest, tau);
	}
	return oldest;
}

uint64
au_next_insert_stamp(void)
{
	return pg_atomic_fetch_add_u64(&shared->insert_stamp, 1);
}
