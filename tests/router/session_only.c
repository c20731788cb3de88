/*
 * A stock PostgreSQL plus postgres/session.c and nothing else: the router's tests need no storage.
 */
#include "australis.h"

#include "fmgr.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

char	   *au_run_directory;

/* what session.c asks the rest of the extension; there is no rest */
bool		au_enabled = false;

void
au_newest_snapshot(Tau *acked, int64 *ddl)
{
	elog(FATAL, "no shared page");
}

void
au_ddl_wait_applied(int64 n)
{
	elog(FATAL, "no DDL log");
}

void		_PG_init(void);

void
_PG_init(void)
{
	DefineCustomStringVariable("australis.run_directory", "Directory of the sockets.", NULL,
							   &au_run_directory, "", PGC_POSTMASTER, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("australis");
	au_session_init();
}
