/*-------------------------------------------------------------------------
 *
 * rekey.c
 *	  Give a table the keys that its primary key asks for.
 *
 * pg_dump and pgbench add primary keys after the data.  The rows have hidden
 * keys then, and every look-up by the primary key costs two reads.  So after
 * a statement that gave a table a new primary key, its rows are copied into a
 * new storage id that is organised by it: PostgreSQL's own table rewrite, as
 * in VACUUM FULL, with our access method at both ends.  It happens in the
 * transaction of the statement and rolls back with it; the new storage id is
 * filled in chunks beside the adjudicator (rule Q8).
 *
 *-------------------------------------------------------------------------
 */
#include "australis.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/cluster.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"

/* Called after a statement that may have added a primary key to relid. */
void
au_rekey_if_needed(Oid relid)
{
	List	   *oids = find_all_inheritors(relid, NoLock, NULL);

	foreach_oid(oid, oids)
	{
		char		kind = get_rel_relkind(oid);
		Relation	rel;
		ClusterParams params = {0};

		if (kind != RELKIND_RELATION && kind != RELKIND_MATVIEW)
			continue;
		/* the statement that added the key holds this lock already */
		if (!CheckRelationOidLockedByMe(oid, AccessExclusiveLock, true) &&
			!CheckRelationOidLockedByMe(oid, ShareRowExclusiveLock, true))
			continue;
		rel = table_open(oid, NoLock);
		if (!au_is_our_table(rel) || !au_layout_wants_rekey(rel))
		{
			table_close(rel, NoLock);
			continue;
		}
		LockRelationOid(oid, AccessExclusiveLock);
		/* closes the relation */
		cluster_rel(rel, InvalidOid, &params);
		CommandCounterIncrement();
	}
	list_free(oids);
}
