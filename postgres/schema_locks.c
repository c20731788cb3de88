/*-------------------------------------------------------------------------
 *
 * schema_locks.c
 *	  Schema changes of one relation wait for each other.
 *
 * In PostgreSQL two CREATE INDEX on one table run side by side, and one that
 * finds the table locked waits and goes on.  Here each has a snapshot time,
 * and the adjudicator refuses a change of a relation that another transaction
 * changed after it (rule A5): pg_restore -j would lose every second index.  So
 * before a schema change takes its snapshot time, it takes a lock of its own
 * kind on the relations that it names, and the relation lock that PostgreSQL
 * is going to take anyway: when it has those, whatever it waited for is
 * committed, hence older than its snapshot.
 *
 * What must hold: nobody locks what he may not change; correctness needs none
 * of these locks (the adjudicator decides), so a relation that is missed here
 * costs a retry and nothing else.  They are PostgreSQL's locks: deadlocks are
 * found, lock_timeout and cancel work, the end of the transaction frees them.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"

/* More are a schema's worth: the locks would cost more than a retry. */
#define MAX_RELATIONS 256

typedef struct Named
{
	List	   *oids;			/* tables to be changed, with their children */
	Oid			target;			/* the one that PostgreSQL locks in mode */
	LOCKMODE	mode;
} Named;

static bool
may_change(Oid relid)
{
	AclMode		rights = ACL_TRUNCATE | ACL_REFERENCES | ACL_TRIGGER | ACL_MAINTAIN |
		ACL_GRANT_OPTION_FOR(ACL_ALL_RIGHTS_RELATION);

	return object_ownercheck(RelationRelationId, relid, GetUserId()) ||
		pg_class_aclmask(relid, GetUserId(), rights, ACLMASK_ANY) != 0;
}

/* The relation, an index's table, and what inherits from it. */
static void
add(Named *named, RangeVar *name, LOCKMODE mode)
{
	Oid			relid;
	char		kind;

	if (name == NULL || name->catalogname != NULL)
		return;
	relid = RangeVarGetRelid(name, NoLock, true);
	if (!OidIsValid(relid) || get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
		return;
	kind = get_rel_relkind(relid);
	if (kind == RELKIND_INDEX || kind == RELKIND_PARTITIONED_INDEX)
	{
		relid = IndexGetRelation(relid, true);
		mode = NoLock;			/* other modes for the table than for the index */
		if (!OidIsValid(relid))
			return;
	}
	if (relid < FirstNormalObjectId || !may_change(relid))
		return;
	if (mode != NoLock && (kind == RELKIND_RELATION || kind == RELKIND_MATVIEW) &&
		!has_subclass(relid))
	{
		named->target = relid;
		named->mode = mode;
	}
	named->oids = list_concat_unique_oid(named->oids, find_all_inheritors(relid, NoLock, NULL));
}

static void
add_constraints(Named *named, List *constraints)
{
	ListCell   *lc;

	foreach(lc, constraints)
	{
		if (IsA(lfirst(lc), Constraint))
			add(named, ((Constraint *) lfirst(lc))->pktable, NoLock);
		else if (IsA(lfirst(lc), ColumnDef))
			add_constraints(named, ((ColumnDef *) lfirst(lc))->constraints);
	}
}

static void
add_all(Named *named, List *names)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (IsA(lfirst(lc), RangeVar))
			add(named, lfirst_node(RangeVar, lc), NoLock);
	}
}

static void
add_dropped(Named *named, DropStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		List	   *name;

		switch (stmt->removeType)
		{
			case OBJECT_TABLE:
			case OBJECT_INDEX:
			case OBJECT_MATVIEW:
			case OBJECT_VIEW:
				name = lfirst_node(List, lc);
				break;
			case OBJECT_POLICY:
			case OBJECT_RULE:
			case OBJECT_TRIGGER:
				name = list_copy_head(lfirst_node(List, lc), list_length(lfirst_node(List, lc)) - 1);
				break;
			default:
				return;
		}
		if (name != NIL && list_length(name) <= 2)
			add(named, makeRangeVarFromNameList(name), NoLock);
	}
}

static void
add_altered(Named *named, AlterTableStmt *stmt)
{
	ListCell   *lc;

	add(named, stmt->relation, stmt->objtype == OBJECT_TABLE ? AlterTableGetLockLevel(stmt->cmds) : NoLock);
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		switch (cmd->subtype)
		{
			case AT_AddConstraint:
				add_constraints(named, list_make1(cmd->def));
				break;
			case AT_AddColumn:
				add_constraints(named, castNode(ColumnDef, cmd->def)->constraints);
				break;
			case AT_AttachPartition:
			case AT_DetachPartition:
				add(named, castNode(PartitionCmd, cmd->def)->name, NoLock);
				break;
			case AT_AddInherit:
			case AT_DropInherit:
				add(named, castNode(RangeVar, cmd->def), NoLock);
				break;
			default:
				break;
		}
	}
}

static void
collect(Named *named, Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_IndexStmt:
			add(named, ((IndexStmt *) stmt)->relation,
				((IndexStmt *) stmt)->concurrent ? ShareUpdateExclusiveLock : ShareLock);
			break;
		case T_AlterTableStmt:
			add_altered(named, (AlterTableStmt *) stmt);
			break;
		case T_CreateStmt:
			add_all(named, ((CreateStmt *) stmt)->inhRelations);
			add_constraints(named, ((CreateStmt *) stmt)->tableElts);
			add_constraints(named, ((CreateStmt *) stmt)->constraints);
			break;
		case T_CreateTrigStmt:
			add(named, ((CreateTrigStmt *) stmt)->relation, ShareRowExclusiveLock);
			add(named, ((CreateTrigStmt *) stmt)->constrrel, NoLock);
			break;
		case T_RuleStmt:
			add(named, ((RuleStmt *) stmt)->relation, NoLock);
			break;
		case T_ViewStmt:
			add(named, ((ViewStmt *) stmt)->view, NoLock);
			break;
		case T_CreatePolicyStmt:
			add(named, ((CreatePolicyStmt *) stmt)->table, NoLock);
			break;
		case T_AlterPolicyStmt:
			add(named, ((AlterPolicyStmt *) stmt)->table, NoLock);
			break;
		case T_GrantStmt:
			if (((GrantStmt *) stmt)->targtype == ACL_TARGET_OBJECT &&
				((GrantStmt *) stmt)->objtype == OBJECT_TABLE)
				add_all(named, ((GrantStmt *) stmt)->objects);
			break;
		case T_CreateStatsStmt:
			add_all(named, ((CreateStatsStmt *) stmt)->relations);
			break;
		case T_RenameStmt:
			add(named, ((RenameStmt *) stmt)->relation, NoLock);
			break;
		case T_AlterObjectSchemaStmt:
			add(named, ((AlterObjectSchemaStmt *) stmt)->relation, NoLock);
			break;
		case T_AlterOwnerStmt:
			add(named, ((AlterOwnerStmt *) stmt)->relation, NoLock);
			break;
		case T_DropStmt:
			add_dropped(named, (DropStmt *) stmt);
			break;
		case T_TruncateStmt:
			add_all(named, ((TruncateStmt *) stmt)->relations);
			break;
		case T_ReindexStmt:
			add(named, ((ReindexStmt *) stmt)->relation, ShareLock);
			break;
		case T_ClusterStmt:
			add(named, ((ClusterStmt *) stmt)->relation, AccessExclusiveLock);
			break;
		case T_RefreshMatViewStmt:
			add(named, ((RefreshMatViewStmt *) stmt)->relation, AccessExclusiveLock);
			break;
		default:
			break;
	}
}

/* To be called before the statement takes its snapshot time. */
void
au_schema_lock(Node *stmt)
{
	Named		named = {0};
	ListCell   *lc;

	collect(&named, stmt);
	if (list_length(named.oids) > MAX_RELATIONS)
		return;
	/* in one order everywhere, so that these locks alone never deadlock */
	list_sort(named.oids, list_oid_cmp);
	foreach(lc, named.oids)
		LockDatabaseObject(AccessMethodRelationId, lfirst_oid(lc), 0, ExclusiveLock);
	if (OidIsValid(named.target) && !au_has_tau_start())
		LockRelationOid(named.target, named.mode);
	list_free(named.oids);
}
