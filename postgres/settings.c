/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  Settings, and what happens when the library is loaded.
 *
 * Without australis.run_directory the library is inert: that is how images
 * are built.  With it, every backend of this server is part of a cluster.
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

PG_MODULE_MAGIC_EXT(.name = "australis", .version = "1");

char	   *au_run_directory = NULL;
char	   *au_storage_directory = NULL;
int			au_processor = 0;
int			au_storage_driver = 0;
int			au_service_timeout_ms = 10000;
int			au_write_buffer_limit_kb = 1024 * 1024;
bool		au_enabled = false;

static const struct config_enum_entry storage_drivers[] = {
	{"attached", 0, false},
	{"socket", 1, false},
	{NULL, 0, false}
};

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
	{
		/* single-user mode while an image is built, or a stray LOAD */
		if (IsUnderPostmaster)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("australis must be loaded through shared_preload_libraries")));
	}

	DefineCustomStringVariable("australis.run_directory",
							   "Directory of the cluster's sockets and shared page.",
							   "Empty: this server is not part of a cluster.",
							   &au_run_directory, "", PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("australis.storage_directory",
							   "Directory of the storage node's file, for the attached driver.",
							   NULL, &au_storage_directory, "", PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("australis.processor",
							"Number of this query processor among those of its host.",
							NULL, &au_processor, 0, 0, AU_PROCESSORS_MAX - 1, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("australis.storage_driver",
							 "How rows are read: from the storage node's file, or through its socket.",
							 NULL, &au_storage_driver, 0, storage_drivers, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("australis.service_timeout",
							"How long to wait for a service of the cluster before giving up.",
							NULL, &au_service_timeout_ms, 10000, 100, INT_MAX / 1000, PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("australis.write_buffer_limit",
							"Most memory that one transaction's uncommitted writes may take.",
							NULL, &au_write_buffer_limit_kb, 1024 * 1024, 1024, MAX_KILOBYTES, PGC_SUSET, GUC_UNIT_KB,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("australis.push_down",
							 "Let storage filter rows, leave out columns and read ahead.",
							 NULL, &au_push_down, true, PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("australis");

	au_enabled = au_run_directory[0] != '\0';
	au_row_init();

	/*
	 * The first transaction callback registered runs last: ours must be the
	 * last that can fail (PROTOCOL Q1).
	 */
	au_transaction_init();
	au_utility_init();
	au_planner_init();
	au_index_init();
	au_explain_init();
	au_peers_init();
	au_statistics_init();
	if (process_shared_preload_libraries_in_progress)
	{
		au_shmem_init();
		au_session_init();
		if (au_enabled)
			au_ddl_register();
	}
}
