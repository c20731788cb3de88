/*-------------------------------------------------------------------------
 *
 * ddl_capture.c
 *	  The effect of a transaction on the catalogs, as a DDL record.
 *
 * At PRE_COMMIT the catalogs that this transaction wrote are searched for rows
 * that its (sub)transaction ids inserted or deleted.  What statement did it
 * does not matter: DO blocks, event triggers, extension scripts and direct
 * DML on catalogs all end up as rows.  Which catalogs were written is known
 * from PostgreSQL's transactional counters (track_counts is fixed to on), and
 * pages last changed before the transaction's first statement are skipped.
 *
 * What must hold: the record is complete (applied to another copy of the
 * catalogs it gives the same rows, oids included), and contains nothing that
 * belongs to one query processor: temporary objects, planner statistics,
 * storage of catalogs, freeze horizons.
 *
 * If anything here fails, the transaction aborts as by any other error: the
 * commit message has not been sent yet.
 *
 *-------------------------------------------------------------------------
 */
#include "ddl.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/catversion.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/partition.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_am.h"
#include "catalog/pg_amop.h"
#include "catalog/pg_amproc.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_conversion.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_description.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_init_privs.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_partitioned_table.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_range.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_seclabel.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_shdepend.h"
#include "catalog/pg_shdescription.h"
#include "catalog/pg_shseclabel.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_statistic_ext_data.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_ts_config.h"
#include "catalog/pg_ts_config_map.h"
#include "catalog/pg_ts_dict.h"
#include "catalog/pg_ts_parser.h"
#include "catalog/pg_ts_template.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/fmgroids.h"
#include "utils/guc_tables.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pgstat_internal.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/*
 * What the rows of a catalog belong to.  Catalogs without a rule belong to
 * nobody who could be temporary and describe no relation.
 */
typedef struct CatalogRule
{
	Oid			catalog;
	AttrNumber	oid;			/* the row's own oid */
	AttrNumber	owner;			/* the object that the row is a part of ... */
	Oid			owner_class;	/* ... and its catalog */
	AttrNumber	also;			/* another relation that the row describes */
	AttrNumber	nsp;			/* schema */
} CatalogRule;

static const CatalogRule rules[] = {
	{AccessMethodOperatorRelationId, Anum_pg_amop_oid, Anum_pg_amop_amopfamily, OperatorFamilyRelationId, 0, 0},
	{AccessMethodProcedureRelationId, Anum_pg_amproc_oid, Anum_pg_amproc_amprocfamily, OperatorFamilyRelationId, 0, 0},
	{AggregateRelationId, 0, Anum_pg_aggregate_aggfnoid, ProcedureRelationId, 0, 0},
	{AttrDefaultRelationId, Anum_pg_attrdef_oid, Anum_pg_attrdef_adrelid, RelationRelationId, 0, 0},
	{AttributeRelationId, 0, Anum_pg_attribute_attrelid, RelationRelationId, 0, 0},
	{CollationRelationId, Anum_pg_collation_oid, 0, 0, 0, Anum_pg_collation_collnamespace},
	{ConstraintRelationId, Anum_pg_constraint_oid, Anum_pg_constraint_conrelid, RelationRelationId,
	Anum_pg_constraint_confrelid, 0},
	{ConversionRelationId, Anum_pg_conversion_oid, 0, 0, 0, Anum_pg_conversion_connamespace},
	{EnumRelationId, Anum_pg_enum_oid, Anum_pg_enum_enumtypid, TypeRelationId, 0, 0},
	{ForeignTableRelationId, 0, Anum_pg_foreign_table_ftrelid, RelationRelationId, 0, 0},
	{IndexRelationId, 0, Anum_pg_index_indexrelid, RelationRelationId, Anum_pg_index_indrelid, 0},
	{InheritsRelationId, 0, Anum_pg_inherits_inhrelid, RelationRelationId, Anum_pg_inherits_inhparent, 0},
	{OperatorClassRelationId, Anum_pg_opclass_oid, 0, 0, 0, Anum_pg_opclass_opcnamespace},
	{OperatorFamilyRelationId, Anum_pg_opfamily_oid, 0, 0, 0, Anum_pg_opfamily_opfnamespace},
	{OperatorRelationId, Anum_pg_operator_oid, 0, 0, 0, Anum_pg_operator_oprnamespace},
	{PartitionedRelationId, 0, Anum_pg_partitioned_table_partrelid, RelationRelationId,
	Anum_pg_partitioned_table_partdefid, 0},
	{PolicyRelationId, Anum_pg_policy_oid, Anum_pg_policy_polrelid, RelationRelationId, 0, 0},
	{ProcedureRelationId, Anum_pg_proc_oid, 0, 0, 0, Anum_pg_proc_pronamespace},
	{RangeRelationId, 0, Anum_pg_range_rngtypid, TypeRelationId, 0, 0},
	{RelationRelationId, Anum_pg_class_oid, Anum_pg_class_oid, RelationRelationId, 0, 0},
	{RewriteRelationId, Anum_pg_rewrite_oid, Anum_pg_rewrite_ev_class, RelationRelationId, 0, 0},
	{SequenceRelationId, 0, Anum_pg_sequence_seqrelid, RelationRelationId, 0, 0},
	{StatisticExtRelationId, Anum_pg_statistic_ext_oid, Anum_pg_statistic_ext_stxrelid, RelationRelationId, 0, 0},
	{TSConfigMapRelationId, 0, Anum_pg_ts_config_map_mapcfg, TSConfigRelationId, 0, 0},
	{TSConfigRelationId, Anum_pg_ts_config_oid, 0, 0, 0, Anum_pg_ts_config_cfgnamespace},
	{TSDictionaryRelationId, Anum_pg_ts_dict_oid, 0, 0, 0, Anum_pg_ts_dict_dictnamespace},
	{TSParserRelationId, Anum_pg_ts_parser_oid, 0, 0, 0, Anum_pg_ts_parser_prsnamespace},
	{TSTemplateRelationId, Anum_pg_ts_template_oid, 0, 0, 0, Anum_pg_ts_template_tmplnamespace},
	{TriggerRelationId, Anum_pg_trigger_oid, Anum_pg_trigger_tgrelid, RelationRelationId,
	Anum_pg_trigger_tgconstrrelid, 0},
	{TypeRelationId, Anum_pg_type_oid, 0, 0, 0, Anum_pg_type_typnamespace},
};

/* One catalog that the transaction wrote. */
typedef struct Catalog
{
	Relation	rel;
	const CatalogRule *rule;
	List	   *effects;
} Catalog;

typedef struct Effect
{
	Catalog    *catalog;
	int			op;
	HeapTuple	tuple;			/* flattened */
	struct Effect *other;		/* insert: the deleted version of this row */
	bool		skip;
} Effect;

typedef struct ObjectKey
{
	Oid			classid;
	Oid			objid;
} ObjectKey;

typedef struct ObjectEntry
{
	ObjectKey	key;
	Effect	   *deleted;
	Effect	   *inserted;
	int			temp;			/* -1 unknown, 0, 1 */
} ObjectEntry;

typedef struct TypeKey
{
	Oid			type;
	int			depends;
} TypeKey;

typedef struct Capture
{
	List	   *catalogs;		/* Catalog * */
	HTAB	   *objects;		/* ObjectEntry */
	HTAB	   *changed;		/* Oid */
	HTAB	   *depends;		/* Oid */
	HTAB	   *types;			/* TypeKey: domains already looked through */
	HTAB	   *enums;			/* Oid: types made of a changed enum, likewise */
	List	   *databases;		/* of created or dropped ones: Effect * */
	List	   *sequences;		/* oids of sequences with new storage */
} Capture;

typedef struct Truncated
{
	Oid			relid;
	int			level;			/* nest level that it was truncated in */
} Truncated;

bool		au_ddl_applying = false;

/* what is known of the running transaction; valid while noted_lxid is its id */
static LocalTransactionId noted_lxid = InvalidLocalTransactionId;
static XLogRecPtr noted_lsn;	/* catalogs unchanged before; 0: unknown */
static char noted_tags[512];
static Oid	noted_database;
static Oid	noted_template;
static List *noted_truncated;	/* of Truncated *, in TopTransactionContext */

static object_access_hook_type prev_object_access = NULL;

/* ------------------------------------------------------- what utility.c tells */

static void
note_transaction(void)
{
	if (noted_lxid == MyProc->vxid.lxid)
		return;
	noted_lxid = MyProc->vxid.lxid;

	/*
	 * A transaction without an id has changed no catalog yet, so pages older
	 * than now can hold none of its rows.
	 */
	noted_lsn = TransactionIdIsValid(GetTopTransactionIdIfAny()) ? InvalidXLogRecPtr : GetXLogInsertRecPtr();
	noted_tags[0] = '\0';
	noted_database = noted_template = InvalidOid;
	noted_truncated = NIL;
}

void
au_ddl_note_statement(const char *tag)
{
	size_t		len;

	note_transaction();
	len = strlen(noted_tags);
	if (len + strlen(tag) + 3 < sizeof(noted_tags))
		snprintf(noted_tags + len, sizeof(noted_tags) - len, "%s%s", len ? "; " : "", tag);
}

void
au_ddl_note_template(Oid database, Oid template_oid)
{
	note_transaction();
	noted_database = database;
	noted_template = template_oid;
}

static void
note_object_access(ObjectAccessType access, Oid classid, Oid objid, int subid, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classid, objid, subid, arg);
	if (access == OAT_TRUNCATE && au_enabled)
	{
		MemoryContext old;
		Truncated  *truncated;

		note_transaction();
		old = MemoryContextSwitchTo(TopTransactionContext);
		truncated = palloc(sizeof(Truncated));
		truncated->relid = objid;
		truncated->level = GetCurrentTransactionNestLevel();
		noted_truncated = lappend(noted_truncated, truncated);
		MemoryContextSwitchTo(old);
	}
}

/* A subtransaction ended: its TRUNCATEs are its parent's, or never happened. */
void
au_ddl_subxact_end(int level, bool commit)
{
	ListCell   *lc;

	if (noted_lxid != MyProc->vxid.lxid)
		return;
	foreach(lc, noted_truncated)
	{
		Truncated  *truncated = lfirst(lc);

		if (truncated->level < level)
			continue;
		if (commit)
			truncated->level = level - 1;
		else
			noted_truncated = foreach_delete_current(noted_truncated, lc);
	}
}

static bool
was_truncated(Oid relid)
{
	foreach_ptr(Truncated, truncated, noted_truncated)
	{
		if (truncated->relid == relid)
			return true;
	}
	return false;
}

void
au_ddl_capture_init(void)
{
	struct config_generic *option;

	prev_object_access = object_access_hook;
	object_access_hook = note_object_access;

	/*
	 * The counters tell which catalogs to search: a session that could turn
	 * them off could make its DDL invisible to the cluster.
	 */
	if (au_enabled)
	{
		option = find_option("track_counts", false, false, ERROR);
		SetConfigOption("track_counts", "on", PGC_POSTMASTER, PGC_S_OVERRIDE);
		option->context = PGC_POSTMASTER;
	}
}

/* ------------------------------------------------------------ shared helpers */

bool
au_ddl_catalog_is_local(Oid catalog)
{
	return catalog == StatisticRelationId || catalog == StatisticExtDataRelationId;
}

int
au_ddl_identity(Relation catalog, Oid *index, AttrNumber *attnums)
{
	Oid			pk;
	Relation	rel;
	int			n;

	if (RelationGetRelid(catalog) == DependRelationId || RelationGetRelid(catalog) == SharedDependRelationId)
	{
		/* no key: equal rows are interchangeable, so all columns identify */
		*index = RelationGetRelid(catalog) == DependRelationId ?
			DependDependerIndexId : SharedDependDependerIndexId;
		n = RelationGetNumberOfAttributes(catalog);
		for (int i = 0; i < n; i++)
			attnums[i] = i + 1;
		return n;
	}

	pk = RelationGetPrimaryKeyIndex(catalog, false);
	if (!OidIsValid(pk))
		elog(ERROR, "catalog \"%s\" has no primary key", RelationGetRelationName(catalog));
	rel = index_open(pk, AccessShareLock);
	n = IndexRelationGetNumberOfKeyAttributes(rel);
	for (int i = 0; i < n; i++)
		attnums[i] = rel->rd_index->indkey.values[i];
	index_close(rel, AccessShareLock);
	*index = pk;
	return n;
}

HeapTuple
au_ddl_keep_local_columns(Relation catalog, HeapTuple tuple, HeapTuple local)
{
	if (RelationGetRelid(catalog) == RelationRelationId)
	{
		Form_pg_class from = (Form_pg_class) GETSTRUCT(local);
		Form_pg_class to = (Form_pg_class) GETSTRUCT(tuple);

		/* catalogs have storage, statistics and horizons of their own here */
		if (to->oid < FirstNormalObjectId)
		{
			to->relfilenode = from->relfilenode;
			to->relfrozenxid = from->relfrozenxid;
			to->relminmxid = from->relminmxid;
			to->relpages = from->relpages;
			to->reltuples = from->reltuples;
			to->relallvisible = from->relallvisible;
			to->relallfrozen = from->relallfrozen;
		}
	}
	else if (RelationGetRelid(catalog) == DatabaseRelationId)
	{
		Form_pg_database from = (Form_pg_database) GETSTRUCT(local);
		Form_pg_database to = (Form_pg_database) GETSTRUCT(tuple);

		to->datfrozenxid = from->datfrozenxid;
		to->datminmxid = from->datminmxid;
	}
	return tuple;
}

void
au_ddl_lock(void)
{
	LockSharedObject(AccessMethodRelationId, AU_TABLE_AM_OID, 0, ExclusiveLock);
}

void
au_ddl_unlock(void)
{
	UnlockSharedObject(AccessMethodRelationId, AU_TABLE_AM_OID, 0, ExclusiveLock);
}

/* ------------------------------------------------------------------- reading */

static Datum
effect_attr(Effect *effect, AttrNumber attnum, bool *isnull)
{
	return heap_getattr(effect->tuple, attnum, RelationGetDescr(effect->catalog->rel), isnull);
}

static Oid
effect_oid(Effect *effect, AttrNumber attnum)
{
	bool		isnull;
	Datum		d;

	if (attnum == 0)
		return InvalidOid;
	d = effect_attr(effect, attnum, &isnull);
	return isnull ? InvalidOid : DatumGetObjectId(d);
}

static Oid
catalog_of(Effect *effect)
{
	return RelationGetRelid(effect->catalog->rel);
}

/* The catalogs that this transaction wrote. */
static List *
written_catalogs(void)
{
	List	   *oids = NIL;
	PgStat_SubXactStatus *level = pgstat_get_xact_stack_level(GetCurrentTransactionNestLevel());

	for (PgStat_TableXactStatus *t = level->first; t != NULL; t = t->next)
	{
		Oid			relid = t->parent->id;

		if (t->tuples_inserted + t->tuples_updated + t->tuples_deleted == 0)
			continue;
		if (IsCatalogRelationOid(relid) && !au_ddl_catalog_is_local(relid))
			oids = lappend_oid(oids, relid);
	}
	list_sort(oids, list_oid_cmp);
	return oids;
}

/* Did this transaction insert rows into a table of users? */
static bool
has_written_rows(Oid relid)
{
	PgStat_SubXactStatus *level = pgstat_get_xact_stack_level(GetCurrentTransactionNestLevel());

	for (PgStat_TableXactStatus *t = level->first; t != NULL; t = t->next)
		if (t->parent->id == relid && t->tuples_inserted + t->inserted_pre_truncdrop > 0)
			return true;
	return false;
}

static void
add_effect(Catalog *catalog, int op, HeapTuple tuple)
{
	Effect	   *effect = palloc0(sizeof(Effect));

	effect->catalog = catalog;
	effect->op = op;
	effect->tuple = heap_copytuple(tuple);
	catalog->effects = lappend(catalog->effects, effect);
}

/* Collect the rows that the transaction inserted into or deleted from rel. */
static void
scan_catalog(Catalog *catalog, XLogRecPtr since)
{
	Relation	rel = catalog->rel;
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
	BufferAccessStrategy strategy = GetAccessStrategy(BAS_NORMAL);
	TransactionId top = GetTopTransactionId();

	/* a catalog that was itself rewritten has pages without LSNs */
	if (rel->rd_newRelfilelocatorSubid != InvalidSubTransactionId ||
		rel->rd_firstRelfilelocatorSubid != InvalidSubTransactionId)
		since = InvalidXLogRecPtr;

	for (BlockNumber block = 0; block < nblocks; block++)
	{
		Buffer		buffer;
		Page		page;
		OffsetNumber max;

		CHECK_FOR_INTERRUPTS();
		buffer = ReadBufferExtended(rel, MAIN_FORKNUM, block, RBM_NORMAL, strategy);
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		page = BufferGetPage(buffer);
		if (PageIsNew(page) || (since != InvalidXLogRecPtr && PageGetLSN(page) < since))
		{
			UnlockReleaseBuffer(buffer);
			continue;
		}
		max = PageGetMaxOffsetNumber(page);
		for (OffsetNumber off = FirstOffsetNumber; off <= max; off++)
		{
			ItemId		item = PageGetItemId(page, off);
			HeapTupleData tuple;
			TransactionId xmin;
			TransactionId xmax = InvalidTransactionId;
			bool		inserted;
			bool		deleted;

			if (!ItemIdIsNormal(item))
				continue;
			tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
			tuple.t_len = ItemIdGetLength(item);
			tuple.t_tableOid = RelationGetRelid(rel);
			ItemPointerSet(&tuple.t_self, block, off);

			xmin = HeapTupleHeaderGetXmin(tuple.t_data);
			if (!(tuple.t_data->t_infomask & HEAP_XMAX_INVALID) &&
				!HEAP_XMAX_IS_LOCKED_ONLY(tuple.t_data->t_infomask))
				xmax = HeapTupleHeaderGetUpdateXid(tuple.t_data);

			/* own ids are never older than the top one */
			inserted = TransactionIdIsNormal(xmin) && TransactionIdFollowsOrEquals(xmin, top) &&
				TransactionIdIsCurrentTransactionId(xmin);
			deleted = TransactionIdIsNormal(xmax) && TransactionIdFollowsOrEquals(xmax, top) &&
				TransactionIdIsCurrentTransactionId(xmax);
			if (inserted && !deleted)
				add_effect(catalog, DDL_INSERT, &tuple);
			else if (deleted && !inserted)
				add_effect(catalog, DDL_DELETE, &tuple);
		}
		UnlockReleaseBuffer(buffer);
	}
	FreeAccessStrategy(strategy);
}

/* Bring out-of-line values in; the catalogs' toast tables stay local. */
static void
flatten(Catalog *catalog)
{
	ListCell   *lc;

	foreach(lc, catalog->effects)
	{
		Effect	   *effect = lfirst(lc);

		if (HeapTupleHasExternal(effect->tuple))
			effect->tuple = toast_flatten_tuple(effect->tuple, RelationGetDescr(catalog->rel));
	}
}

/* ------------------------------------------------- objects, temporary or not */

static ObjectEntry *
object_entry(Capture *capture, Oid classid, Oid objid)
{
	ObjectKey	key = {classid, objid};
	bool		found;
	ObjectEntry *entry = hash_search(capture->objects, &key, HASH_ENTER, &found);

	if (!found)
	{
		entry->deleted = entry->inserted = NULL;
		entry->temp = -1;
	}
	return entry;
}

static bool object_is_temp(Capture *capture, Oid classid, Oid objid);

static bool
effect_is_temp(Capture *capture, Effect *effect)
{
	const CatalogRule *rule = effect->catalog->rule;

	switch (catalog_of(effect))
	{
		case RelationRelationId:
			return ((Form_pg_class) GETSTRUCT(effect->tuple))->relpersistence == RELPERSISTENCE_TEMP;
		case NamespaceRelationId:
			{
				const char *name = NameStr(((Form_pg_namespace) GETSTRUCT(effect->tuple))->nspname);

				return strncmp(name, "pg_temp_", 8) == 0 || strncmp(name, "pg_toast_temp_", 14) == 0;
			}
		case DependRelationId:
			{
				Form_pg_depend dep = (Form_pg_depend) GETSTRUCT(effect->tuple);

				return object_is_temp(capture, dep->classid, dep->objid) ||
					object_is_temp(capture, dep->refclassid, dep->refobjid);
			}
		case SharedDependRelationId:
			{
				Form_pg_shdepend dep = (Form_pg_shdepend) GETSTRUCT(effect->tuple);

				return dep->dbid == MyDatabaseId && object_is_temp(capture, dep->classid, dep->objid);
			}
		case DescriptionRelationId:
			return object_is_temp(capture, effect_oid(effect, Anum_pg_description_classoid),
								  effect_oid(effect, Anum_pg_description_objoid));
		case SecLabelRelationId:
			return object_is_temp(capture, effect_oid(effect, Anum_pg_seclabel_classoid),
								  effect_oid(effect, Anum_pg_seclabel_objoid));
		case InitPrivsRelationId:
			return object_is_temp(capture, effect_oid(effect, Anum_pg_init_privs_classoid),
								  effect_oid(effect, Anum_pg_init_privs_objoid));
		case ConstraintRelationId:
			if (!OidIsValid(effect_oid(effect, Anum_pg_constraint_conrelid)))
				return object_is_temp(capture, TypeRelationId, effect_oid(effect, Anum_pg_constraint_contypid));
			break;
	}
	if (rule == NULL)
		return false;
	if (rule->nsp != 0)
		return isAnyTempNamespace(effect_oid(effect, rule->nsp));
	return object_is_temp(capture, rule->owner_class, effect_oid(effect, rule->owner));
}

/* Looks at this transaction's effects first, then at the catalogs. */
static bool
object_is_temp(Capture *capture, Oid classid, Oid objid)
{
	ObjectEntry *entry;
	HeapTuple	tuple;
	bool		temp = false;

	if (!OidIsValid(objid) || objid < FirstNormalObjectId)
		return false;
	entry = object_entry(capture, classid, objid);
	if (entry->temp >= 0)
		return entry->temp;
	entry->temp = 0;			/* ends a cycle; there should be none */

	if (entry->inserted)
		temp = effect_is_temp(capture, entry->inserted);
	else if (entry->deleted)
		temp = effect_is_temp(capture, entry->deleted);
	else
	{
		switch (classid)
		{
			case RelationRelationId:
				tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(objid));
				if (HeapTupleIsValid(tuple))
				{
					temp = ((Form_pg_class) GETSTRUCT(tuple))->relpersistence == RELPERSISTENCE_TEMP;
					ReleaseSysCache(tuple);
				}
				break;
			case TypeRelationId:
				tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(objid));
				if (HeapTupleIsValid(tuple))
				{
					temp = isAnyTempNamespace(((Form_pg_type) GETSTRUCT(tuple))->typnamespace);
					ReleaseSysCache(tuple);
				}
				break;
			case ProcedureRelationId:
				tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(objid));
				if (HeapTupleIsValid(tuple))
				{
					temp = isAnyTempNamespace(((Form_pg_proc) GETSTRUCT(tuple))->pronamespace);
					ReleaseSysCache(tuple);
				}
				break;
			case ConstraintRelationId:
				tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(objid));
				if (HeapTupleIsValid(tuple))
				{
					Form_pg_constraint con = (Form_pg_constraint) GETSTRUCT(tuple);

					temp = OidIsValid(con->conrelid) ? object_is_temp(capture, RelationRelationId, con->conrelid)
						: object_is_temp(capture, TypeRelationId, con->contypid);
					ReleaseSysCache(tuple);
				}
				break;
			case NamespaceRelationId:
				temp = isAnyTempNamespace(objid);
				break;
		}
	}

	/* the table may have been resized by the recursion */
	object_entry(capture, classid, objid)->temp = temp;
	return temp;
}

/* Pair the deleted and inserted versions of rows that have oids. */
static void
index_objects(Capture *capture)
{
	ListCell   *lc;
	ListCell   *le;

	foreach(lc, capture->catalogs)
	{
		Catalog    *catalog = lfirst(lc);

		foreach(le, catalog->effects)
		{
			Effect	   *effect = lfirst(le);
			ObjectEntry *entry;
			AttrNumber	oid = catalog->rule ? catalog->rule->oid : 0;

			if (RelationGetRelid(catalog->rel) == DatabaseRelationId)
				oid = Anum_pg_database_oid;
			if (RelationGetRelid(catalog->rel) == NamespaceRelationId)
				oid = Anum_pg_namespace_oid;
			if (oid == 0)
				continue;
			entry = object_entry(capture, RelationGetRelid(catalog->rel), effect_oid(effect, oid));
			if (effect->op == DDL_INSERT)
				entry->inserted = effect;
			else
				entry->deleted = effect;
		}
		foreach(le, catalog->effects)
		{
			Effect	   *effect = lfirst(le);
			AttrNumber	oid = catalog->rule ? catalog->rule->oid : 0;

			if (RelationGetRelid(catalog->rel) == DatabaseRelationId)
				oid = Anum_pg_database_oid;
			if (oid == 0 || effect->op != DDL_INSERT)
				continue;
			effect->other = object_entry(capture, RelationGetRelid(catalog->rel), effect_oid(effect, oid))->deleted;
		}
	}
}

static bool
same_content(HeapTuple a, HeapTuple b)
{
	return a->t_len == b->t_len &&
		HeapTupleHeaderGetNatts(a->t_data) == HeapTupleHeaderGetNatts(b->t_data) &&
		(a->t_data->t_infomask & HEAP_HASNULL) == (b->t_data->t_infomask & HEAP_HASNULL) &&
		memcmp((char *) a->t_data + offsetof(HeapTupleHeaderData, t_bits),
			   (char *) b->t_data + offsetof(HeapTupleHeaderData, t_bits),
			   a->t_len - offsetof(HeapTupleHeaderData, t_bits)) == 0;
}

/* Leave out what belongs to this query processor only. */
static int
drop_local_effects(Capture *capture)
{
	int			left = 0;
	ListCell   *lc;
	ListCell   *le;

	foreach(lc, capture->catalogs)
	{
		Catalog    *catalog = lfirst(lc);

		foreach(le, catalog->effects)
		{
			Effect	   *effect = lfirst(le);

			if (effect_is_temp(capture, effect))
				effect->skip = true;
			else if (RelationGetRelid(catalog->rel) == SharedDescriptionRelationId &&
					 effect_oid(effect, Anum_pg_shdescription_objoid) == AU_TABLE_AM_OID &&
					 effect_oid(effect, Anum_pg_shdescription_classoid) == AccessMethodRelationId)
				effect->skip = true;
			else if (effect->other)
			{
				au_ddl_keep_local_columns(catalog->rel, effect->tuple, effect->other->tuple);
				if (same_content(effect->tuple, effect->other->tuple))
					effect->skip = effect->other->skip = true;
			}
		}
		foreach(le, catalog->effects)
			if (!((Effect *) lfirst(le))->skip)
				left++;
	}
	return left;
}

/* ------------------------------------------------------- changed and depends */

static bool
created_here(Capture *capture, Oid relid)
{
	ObjectEntry *entry = object_entry(capture, RelationRelationId, relid);

	return entry->inserted != NULL && entry->deleted == NULL;
}

static void
note_changed(Capture *capture, Oid relid)
{
	if (relid >= FirstNormalObjectId)
		(void) hash_search(capture->changed, &relid, HASH_ENTER, NULL);
}

/*
 * The outcome depends on the rows that relid had as of tau_start.  Those of a
 * partitioned table are written under the names of its partitions.
 */
static void
note_depends(Capture *capture, Oid relid)
{
	List	   *oids = list_make1_oid(relid);

	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
		oids = find_all_inheritors(relid, NoLock, NULL);
	foreach_oid(oid, oids)
	{
		if (oid >= FirstNormalObjectId && !created_here(capture, oid) &&
			!object_is_temp(capture, RelationRelationId, oid))
			(void) hash_search(capture->depends, &oid, HASH_ENTER, NULL);
	}
	list_free(oids);
}

/* Tables with columns of a domain, or of a type made of it. */
static void
note_type_users(Capture *capture, Oid type, bool depends)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key[2];
	HeapTuple	tuple;
	TypeKey		type_key = {type, depends};
	bool		found;

	check_stack_depth();
	(void) hash_search(capture->types, &type_key, HASH_ENTER, &found);
	if (found)
		return;

	rel = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(type));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend dep = (Form_pg_depend) GETSTRUCT(tuple);

		if (dep->classid == TypeRelationId)
			note_type_users(capture, dep->objid, depends);
		else if (dep->classid == RelationRelationId && dep->objsubid != 0)
		{
			char		relkind = get_rel_relkind(dep->objid);

			if (relkind == RELKIND_COMPOSITE_TYPE)
				note_type_users(capture, get_rel_type_id(dep->objid), depends);
			else if (relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE ||
					 relkind == RELKIND_MATVIEW)
			{
				note_changed(capture, dep->objid);
				if (depends)
					note_depends(capture, dep->objid);
			}
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/*
 * Can index keys hold values of this type?  True as soon as a relation has a
 * column of it, or of a type made of it.
 */
static bool
type_is_stored(Capture *capture, Oid type)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key[2];
	HeapTuple	tuple;
	bool		found;
	bool		stored = false;

	check_stack_depth();
	(void) hash_search(capture->enums, &type, HASH_ENTER, &found);
	if (found)
		return false;

	rel = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(type));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (!stored && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend dep = (Form_pg_depend) GETSTRUCT(tuple);

		if (dep->classid == TypeRelationId)
			stored = type_is_stored(capture, dep->objid);
		else if (dep->classid == RelationRelationId)
			stored = get_rel_relkind(dep->objid) == RELKIND_COMPOSITE_TYPE ?
				type_is_stored(capture, get_rel_type_id(dep->objid)) :
				!object_is_temp(capture, RelationRelationId, dep->objid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return stored;
}

/*
 * The table whose rows refer by this constraint, if the constraint is the part
 * of a foreign key that is about one partition of the referenced table.
 * removed: and if that partition has left the table.
 */
static Oid
referencing_partition(Capture *capture, Form_pg_constraint con, bool *removed)
{
	ObjectEntry *parent;
	Oid			conrelid = InvalidOid;

	*removed = false;
	if (con->contype != CONSTRAINT_FOREIGN || !OidIsValid(con->conparentid))
		return InvalidOid;
	parent = object_entry(capture, ConstraintRelationId, con->conparentid);
	if (parent->inserted)
		conrelid = ((Form_pg_constraint) GETSTRUCT(parent->inserted->tuple))->conrelid;
	else if (parent->deleted == NULL)
	{
		HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(con->conparentid));

		if (HeapTupleIsValid(tuple))
		{
			conrelid = ((Form_pg_constraint) GETSTRUCT(tuple))->conrelid;
			ReleaseSysCache(tuple);
		}
	}
	/* the parts for partitions of the referencing table have other conrelids */
	if (conrelid != con->conrelid)
		return InvalidOid;
	*removed = object_entry(capture, ConstraintRelationId, con->oid)->inserted == NULL;
	return conrelid;
}

static void
name_constraint(Capture *capture, Effect *effect)
{
	Form_pg_constraint con = (Form_pg_constraint) GETSTRUCT(effect->tuple);
	bool		validated;
	bool		removed;

	if (OidIsValid(referencing_partition(capture, con, &removed)))
	{
		/*
		 * DETACH looked for rows that refer to the partition.  Otherwise the
		 * constraint as a whole tells; a partition more refers to nothing.
		 */
		if (removed)
			note_depends(capture, con->conrelid);
		return;
	}

	/* newly true of all rows? */
	validated = effect->op == DDL_INSERT && con->convalidated &&
		(effect->other == NULL || !((Form_pg_constraint) GETSTRUCT(effect->other->tuple))->convalidated);

	if (OidIsValid(con->contypid))
		note_type_users(capture, con->contypid, validated);
	if (!validated || !OidIsValid(con->conrelid))
		return;
	switch (con->contype)
	{
		case CONSTRAINT_CHECK:
		case CONSTRAINT_NOTNULL:
			note_depends(capture, con->conrelid);
			break;
		case CONSTRAINT_FOREIGN:
			note_depends(capture, con->conrelid);

			/*
			 * Rows of the referenced table were read only if there was a
			 * referencing row: creating an empty table beside a busy parent
			 * must not fail.
			 */
			if (!created_here(capture, con->conrelid) || has_written_rows(con->conrelid))
				note_depends(capture, con->confrelid);
			break;
		default:
			break;				/* the index tells */
	}
}

/*
 * A virtual generated column has no values in storage: with another expression
 * and NOT NULL, all rows were looked at, and nothing else tells.
 */
static void
name_default(Capture *capture, Effect *effect)
{
	Form_pg_attrdef def = (Form_pg_attrdef) GETSTRUCT(effect->tuple);
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(def->adrelid), Int16GetDatum(def->adnum));
	Form_pg_attribute att;

	if (!HeapTupleIsValid(tuple))
		return;
	att = (Form_pg_attribute) GETSTRUCT(tuple);
	if (att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL && att->attnotnull)
		note_depends(capture, def->adrelid);
	ReleaseSysCache(tuple);
}

static void
name_class(Capture *capture, Effect *effect)
{
	Form_pg_class cls = (Form_pg_class) GETSTRUCT(effect->tuple);
	Form_pg_class old = effect->other ? (Form_pg_class) GETSTRUCT(effect->other->tuple) : NULL;
	bool		new_storage;

	if (effect->op != DDL_INSERT)
	{
		ObjectEntry *entry = object_entry(capture, RelationRelationId, cls->oid);

		if (cls->relkind == RELKIND_SEQUENCE &&
			(entry->inserted == NULL ||
			 ((Form_pg_class) GETSTRUCT(entry->inserted->tuple))->relfilenode != cls->relfilenode))
			au_sequence_forget(cls->relfilenode);
		if (entry->inserted == NULL &&
			(RELKIND_HAS_TABLE_AM(cls->relkind) || cls->relkind == RELKIND_PARTITIONED_TABLE))
			au_statistics_forget(cls->oid);
		return;
	}

	if (cls->oid >= FirstNormalObjectId &&
		((RELKIND_HAS_TABLE_AM(cls->relkind) && cls->relkind != RELKIND_TOASTVALUE && cls->relam != AU_TABLE_AM_OID) ||
		 (cls->relkind == RELKIND_PARTITIONED_TABLE && OidIsValid(cls->relam) && cls->relam != AU_TABLE_AM_OID) ||
		 ((cls->relkind == RELKIND_INDEX || cls->relkind == RELKIND_PARTITIONED_INDEX) &&
		  cls->relam != AU_INDEX_AM_OID)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("relation \"%s\" uses an access method that only temporary relations can use",
						NameStr(cls->relname)),
				 errhint("Use the access methods heap and btree.")));

	new_storage = OidIsValid(cls->relfilenode) && (old == NULL || old->relfilenode != cls->relfilenode);
	if (cls->relkind == RELKIND_SEQUENCE && new_storage)
		capture->sequences = lappend_oid(capture->sequences, cls->oid);
	if (old == NULL || !new_storage)
		return;

	if (cls->relkind == RELKIND_INDEX)
	{
		Oid			heap = IndexGetRelation(cls->oid, true);

		/* writers of the old snapshot would maintain the old storage */
		note_changed(capture, heap);
		if (!was_truncated(heap))
			note_depends(capture, heap);
	}
	else if ((cls->relkind == RELKIND_RELATION || cls->relkind == RELKIND_MATVIEW) &&
			 !was_truncated(cls->oid))
		note_depends(capture, cls->oid);
}

/* Rows of shared catalogs that CREATE or DROP DATABASE writes by itself. */
static bool
belongs_to_database(Effect *effect, Oid dbid)
{
	switch (catalog_of(effect))
	{
		case SharedDependRelationId:
			return effect_oid(effect, Anum_pg_shdepend_dbid) == dbid ||
				(effect_oid(effect, Anum_pg_shdepend_classid) == DatabaseRelationId &&
				 effect_oid(effect, Anum_pg_shdepend_objid) == dbid);
		case SharedDescriptionRelationId:
			return effect_oid(effect, Anum_pg_shdescription_classoid) == DatabaseRelationId &&
				effect_oid(effect, Anum_pg_shdescription_objoid) == dbid;
		case SharedSecLabelRelationId:
			return effect_oid(effect, Anum_pg_shseclabel_classoid) == DatabaseRelationId &&
				effect_oid(effect, Anum_pg_shseclabel_objoid) == dbid;
		case DbRoleSettingRelationId:
			return effect_oid(effect, Anum_pg_db_role_setting_setdatabase) == dbid;
		default:
			return false;
	}
}

/* Fill changed and depends (PROTOCOL A5), and refuse what cannot be replicated. */
static void
name_relations(Capture *capture)
{
	ListCell   *lc;
	ListCell   *le;

	foreach(lc, capture->catalogs)
	{
		Catalog    *catalog = lfirst(lc);

		foreach(le, catalog->effects)
		{
			Effect	   *effect = lfirst(le);
			const CatalogRule *rule = catalog->rule;

			if (effect->skip)
				continue;
			if (rule && rule->owner != 0 && rule->owner_class == RelationRelationId)
				note_changed(capture, effect_oid(effect, rule->owner));
			if (rule && rule->also != 0)
				note_changed(capture, effect_oid(effect, rule->also));

			switch (RelationGetRelid(catalog->rel))
			{
				case RelationRelationId:
					name_class(capture, effect);
					break;
				case ConstraintRelationId:
					name_constraint(capture, effect);
					break;
				case AttrDefaultRelationId:
					if (effect->op == DDL_INSERT)
						name_default(capture, effect);
					break;
				case IndexRelationId:
					/*
					 * Not for changed flags of an index, nor for one that is
					 * not valid yet: no row was read, or each was validated
					 * (online_index.c).
					 */
					if (effect->op == DDL_INSERT &&
						((Form_pg_index) GETSTRUCT(effect->tuple))->indisvalid &&
						created_here(capture, effect_oid(effect, Anum_pg_index_indexrelid)))
						note_depends(capture, effect_oid(effect, Anum_pg_index_indrelid));
					break;
				case InheritsRelationId:
					if (effect->op == DDL_INSERT)
					{
						Oid			child = effect_oid(effect, Anum_pg_inherits_inhrelid);
						Oid			parent = effect_oid(effect, Anum_pg_inherits_inhparent);

						/* rows were checked against the bounds */
						if (get_rel_relispartition(child))
						{
							/* so did the bounds of what is below it */
							foreach_oid(oid, find_all_inheritors(child, NoLock, NULL))
								note_changed(capture, oid);
							note_depends(capture, child);
							if (get_rel_relkind(parent) == RELKIND_PARTITIONED_TABLE)
							{
								Oid			def = get_default_partition_oid(parent);

								if (OidIsValid(def) && def != child)
								{
									/* its partitions' bounds changed with it */
									foreach_oid(oid, find_all_inheritors(def, NoLock, NULL))
										note_changed(capture, oid);
									note_depends(capture, def);
								}
							}
						}
					}
					break;
				case TypeRelationId:
					if (effect->op == DDL_INSERT && effect->other &&
						((Form_pg_type) GETSTRUCT(effect->tuple))->typtype == TYPTYPE_DOMAIN)
						note_type_users(capture, ((Form_pg_type) GETSTRUCT(effect->tuple))->oid, false);
					break;
				case EnumRelationId:
					if (effect->other &&
						((Form_pg_enum) GETSTRUCT(effect->tuple))->enumsortorder !=
						((Form_pg_enum) GETSTRUCT(effect->other->tuple))->enumsortorder &&
						type_is_stored(capture, ((Form_pg_enum) GETSTRUCT(effect->tuple))->enumtypid))
						ereport(ERROR,
								(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
								 errmsg("the positions of existing labels of an enum type that is in use cannot be changed"),
								 errdetail("Too many labels were added between the same two labels; index keys contain the labels' positions."),
								 errhint("Add the label at the end, or create a new type.")));
					break;
				case DatabaseRelationId:
					{
						ObjectEntry *entry = object_entry(capture, DatabaseRelationId,
														  effect_oid(effect, Anum_pg_database_oid));

						if (entry->inserted == NULL || entry->deleted == NULL)
							capture->databases = lappend(capture->databases, effect);
						break;
					}
			}
		}
	}

	/*
	 * CREATE DATABASE and DROP DATABASE are applied as such: they come with
	 * files, and with rows of the shared catalogs that follow from them.
	 */
	foreach(lc, capture->databases)
	{
		Effect	   *database = lfirst(lc);
		Oid			dbid = effect_oid(database, Anum_pg_database_oid);
		ListCell   *lcat;

		if (database->op == DDL_INSERT && dbid != noted_database)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("a database can be added only by CREATE DATABASE")));
		foreach(lcat, capture->catalogs)
		{
			Catalog    *catalog = lfirst(lcat);

			foreach(le, catalog->effects)
				if (belongs_to_database(lfirst(le), dbid))
					((Effect *) lfirst(le))->skip = true;
		}
		if (database->op == DDL_DELETE)
			database->skip = true;
	}
}

/* ------------------------------------------------------------- the record */

/* A deleted row needs only what identifies it. */
static HeapTuple
identity_tuple(Effect *effect)
{
	TupleDesc	desc = RelationGetDescr(effect->catalog->rel);
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	bool	   *key = palloc0(desc->natts * sizeof(bool));
	AttrNumber	attnums[MaxHeapAttributeNumber];
	Oid			index;
	int			n = au_ddl_identity(effect->catalog->rel, &index, attnums);

	for (int i = 0; i < n; i++)
		key[attnums[i] - 1] = true;
	heap_deform_tuple(effect->tuple, desc, values, nulls);
	for (int i = 0; i < desc->natts; i++)
		if (!key[i])
			nulls[i] = true;
	return heap_form_tuple(desc, values, nulls);
}

void
au_ddl_encode_tuple(StringInfo buf, HeapTuple tuple)
{
	HeapTupleHeader header = tuple->t_data;
	int			flags = 0;

	Assert(!HeapTupleHasExternal(tuple));
	if (header->t_infomask & HEAP_HASNULL)
		flags |= DDL_HAS_NULLS;
	if (header->t_infomask & HEAP_HASVARWIDTH)
		flags |= DDL_HAS_VARWIDTH;
	au_mp_int(buf, HeapTupleHeaderGetNatts(header) | flags << 16);
	au_mp_bin(buf, (char *) header + offsetof(HeapTupleHeaderData, t_bits),
			  tuple->t_len - offsetof(HeapTupleHeaderData, t_bits));
}

static void
encode_effect(StringInfo buf, Effect *effect)
{
	au_mp_array(buf, 4);
	au_mp_int(buf, catalog_of(effect));
	au_mp_int(buf, effect->op);
	au_ddl_encode_tuple(buf, effect->op == DDL_DELETE ? identity_tuple(effect) : effect->tuple);
}

static List *
relation_names(HTAB *relids)
{
	List	   *names = NIL;
	HASH_SEQ_STATUS status;
	Oid		   *relid;

	hash_seq_init(&status, relids);
	while ((relid = hash_seq_search(&status)) != NULL)
	{
		uint64	   *name = palloc(sizeof(uint64));

		*name = (uint64) MyDatabaseId << 32 | *relid;
		names = lappend(names, name);
	}
	return names;
}

static void
encode_record(Capture *capture, StringInfo buf, List *changed)
{
	ListCell   *lc;
	ListCell   *le;
	uint32		count = 0;

	au_mp_array(buf, DDL_RECORD_FIELDS);
	au_mp_int(buf, DDL_RECORD_VERSION);
	au_mp_int(buf, CATALOG_VERSION_NO);
	au_mp_int(buf, MyDatabaseId);
	LWLockAcquire(OidGenLock, LW_SHARED);
	au_mp_int(buf, TransamVariables->nextOid);
	LWLockRelease(OidGenLock);
	au_mp_str(buf, noted_lxid == MyProc->vxid.lxid ? noted_tags : "");

	foreach(lc, capture->catalogs)
		foreach(le, ((Catalog *) lfirst(lc))->effects)
		if (!((Effect *) lfirst(le))->skip)
			count++;
	au_mp_array(buf, count);
	for (int op = DDL_DELETE; op <= DDL_INSERT; op++)
		foreach(lc, capture->catalogs)
			foreach(le, ((Catalog *) lfirst(lc))->effects)
		{
			Effect	   *effect = lfirst(le);

			if (effect->skip || effect->op != op)
				continue;
			encode_effect(buf, effect);
			if (buf->len > DDL_RECORD_LIMIT)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("the transaction changes too much of the catalogs"),
						 errdetail("The limit is %d MB of catalog rows, large objects included.",
								   DDL_RECORD_LIMIT / (1024 * 1024))));
		}

	au_mp_array(buf, list_length(capture->sequences));
	foreach(lc, capture->sequences)
	{
		Relation	rel = relation_open(lfirst_oid(lc), AccessShareLock);
		int64		last_value;
		bool		is_called;

		au_sequence_read(rel, &last_value, &is_called);
		relation_close(rel, AccessShareLock);
		au_mp_array(buf, 3);
		au_mp_int(buf, lfirst_oid(lc));
		au_mp_int(buf, last_value);
		au_mp_bool(buf, is_called);
	}

	au_mp_array(buf, list_length(capture->databases));
	foreach(lc, capture->databases)
	{
		Effect	   *database = lfirst(lc);

		if (database->op == DDL_INSERT)
		{
			au_mp_array(buf, 3);
			au_mp_int(buf, DDL_CREATE_DATABASE);
			au_mp_int(buf, effect_oid(database, Anum_pg_database_oid));
			au_mp_int(buf, noted_template);
		}
		else
		{
			au_mp_array(buf, 2);
			au_mp_int(buf, DDL_DROP_DATABASE);
			au_mp_int(buf, effect_oid(database, Anum_pg_database_oid));
		}
	}

	au_mp_array(buf, list_length(changed));
	foreach(lc, changed)
		au_mp_int(buf, (int64) *(uint64 *) lfirst(lc));
}

static HTAB *
oid_set(const char *name)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(Oid), .hcxt = CurrentMemoryContext};

	return hash_create(name, 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

bool
au_ddl_collect(StringInfo record, List **changed, List **depends)
{
	MemoryContext context;
	MemoryContext old;
	Capture		capture = {0};
	HASHCTL		ctl = {.keysize = sizeof(ObjectKey), .entrysize = sizeof(ObjectEntry)};
	List	   *oids;
	ListCell   *lc;
	XLogRecPtr	since;
	bool		toasted = false;
	bool		any;

	*changed = *depends = NIL;
	if (au_ddl_applying || !au_enabled || !TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return false;
	oids = written_catalogs();
	if (oids == NIL)
		return false;

	note_transaction();
	since = noted_lsn;
	context = AllocSetContextCreate(CurrentMemoryContext, "DDL capture", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	ctl.hcxt = context;
	capture.objects = hash_create("DDL objects", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	capture.changed = oid_set("DDL changed");
	capture.depends = oid_set("DDL depends");
	ctl.keysize = ctl.entrysize = sizeof(TypeKey);
	capture.types = hash_create("DDL types", 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	capture.enums = oid_set("DDL enums");

	CommandCounterIncrement();
	foreach(lc, oids)
	{
		Catalog    *catalog = palloc0(sizeof(Catalog));
		ListCell   *le;

		catalog->rel = table_open(lfirst_oid(lc), AccessShareLock);
		if (catalog->rel->rd_rel->relkind != RELKIND_RELATION)
		{
			table_close(catalog->rel, AccessShareLock); /* toast */
			continue;
		}
		for (int i = 0; i < lengthof(rules); i++)
			if (rules[i].catalog == lfirst_oid(lc))
				catalog->rule = &rules[i];
		scan_catalog(catalog, since);
		foreach(le, catalog->effects)
			if (HeapTupleHasExternal(((Effect *) lfirst(le))->tuple))
			toasted = true;
		capture.catalogs = lappend(capture.catalogs, catalog);
	}
	if (toasted)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		foreach(lc, capture.catalogs)
			flatten(lfirst(lc));
		PopActiveSnapshot();
	}

	index_objects(&capture);
	any = drop_local_effects(&capture) > 0;
	if (any)
	{
		int64		ddl;
		Tau			acked;

		name_relations(&capture);

		/* it waits for the applier, which needs the lock that is taken next */
		(void) au_tau_start();

		/*
		 * One transaction at a time, until its local commit, so that records
		 * are numbered in the order in which they become visible here.
		 */
		for (;;)
		{
			au_ddl_lock();
			au_page_snapshot(&acked, &ddl);
			if (au_ddl_applied() >= ddl)
				break;
			/* the applier needs the lock */
			au_ddl_unlock();
			au_ddl_wait_applied(ddl);
		}

		MemoryContextSwitchTo(old);
		*changed = relation_names(capture.changed);
		*depends = relation_names(capture.depends);
		MemoryContextSwitchTo(context);
		encode_record(&capture, record, *changed);
	}

	foreach(lc, capture.catalogs)
		table_close(((Catalog *) lfirst(lc))->rel, AccessShareLock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return any;
}
