"""The catalog queries of `engine.catalog_load`. PostgreSQL 16 to 18; they run with `search_path = pg_catalog`."""

from __future__ import annotations

FIRST_USER_OID = 16384
"""FirstNormalObjectId: smaller oids are PostgreSQL's own."""

BUILTINS = f"""
SELECT oid, proname::text, prosrc,
       (provolatile <> 'v' OR proname = ANY ($1::name[])) AND proname <> ALL ($2::name[]) AS is_proved
  FROM pg_proc WHERE oid < {FIRST_USER_OID}
"""

ROUTINES = f"""
SELECT p.oid, n.nspname::text, p.proname::text, l.lanname::text, p.prokind, coalesce(e.extname::text, '') AS extname,
       p.prosrc,
       p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1 AND t.typtype IN ('c', 'p', 'd') AS takes_row,
       CASE WHEN p.prokind <> 'a' AND (l.lanname = 'plpgsql' OR (l.lanname = 'sql' AND p.prosqlbody IS NOT NULL))
            THEN pg_get_functiondef(p.oid) ELSE '' END AS definition
  FROM pg_proc p
  JOIN pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_language l ON l.oid = p.prolang
  LEFT JOIN pg_type t ON p.pronargs > 0 AND t.oid = p.proargtypes[0]
  LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
                       AND d.refclassid = 'pg_extension'::regclass
  LEFT JOIN pg_extension e ON e.oid = d.refobjid
 WHERE p.oid >= {FIRST_USER_OID}
"""

RELATIONS = f"""
SELECT c.oid, n.nspname::text, c.relname::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND c.oid >= {FIRST_USER_OID} AND c.relpersistence <> 't'
"""

# Touching outer_oid touches inner_oid: partitions and children, cascades of foreign keys, views, rules, policies.
RELATION_EDGES = f"""
SELECT inhrelid AS inner_oid, inhparent AS outer_oid, true AS on_read FROM pg_inherits
UNION
SELECT conrelid, confrelid, false FROM pg_constraint WHERE contype = 'f'
UNION
SELECT d.refobjid, r.ev_class, r.ev_type = '1'
  FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class AND r.oid >= {FIRST_USER_OID}
UNION
SELECT d.refobjid, p.polrelid, true
  FROM pg_depend d JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> p.polrelid
"""

_NEXTVAL_OIDS = "SELECT string_agg(oid::text, '|') FROM pg_proc WHERE proname = 'nextval' AND oid < 16384"

SEQUENCE_RELATIONS = f"""
SELECT attrelid AS oid FROM pg_attribute WHERE attidentity <> '' AND NOT attisdropped
UNION
SELECT adrelid FROM pg_attrdef, ({_NEXTVAL_OIDS}) f(oids) WHERE adbin::text ~ (':funcid (' || f.oids || ') ')
"""

# $1: unproved functions; $2: a pattern that finds a call of an unproved built-in one in a stored expression tree.
REACHED = f"""
WITH RECURSIVE
seeds(classid, objid) AS (
    SELECT 'pg_proc'::regclass::oid, f.oid FROM unnest($1::oid[]) f(oid)
    UNION SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite
           WHERE oid >= {FIRST_USER_OID} AND (ev_action::text ~ $2 OR ev_qual::text ~ $2)
    UNION SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adbin::text ~ $2
    UNION SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conbin::text ~ $2
    UNION SELECT 'pg_policy'::regclass, oid FROM pg_policy WHERE polqual::text ~ $2 OR polwithcheck::text ~ $2
    UNION SELECT 'pg_trigger'::regclass, oid FROM pg_trigger WHERE tgqual::text ~ $2 OR tgfoid = ANY ($1::oid[])
    UNION SELECT 'pg_class'::regclass, indexrelid FROM pg_index
           WHERE indexrelid >= {FIRST_USER_OID} AND (indexprs::text ~ $2 OR indpred::text ~ $2)
    UNION SELECT 'pg_proc'::regclass, oid FROM pg_proc
           WHERE oid >= {FIRST_USER_OID} AND (prosqlbody::text ~ $2 OR proargdefaults::text ~ $2)
    UNION SELECT 'pg_type'::regclass, oid FROM pg_type WHERE oid >= {FIRST_USER_OID} AND typdefaultbin::text ~ $2
    UNION SELECT 'pg_operator'::regclass, oid FROM pg_operator
           WHERE oid >= {FIRST_USER_OID} AND oprcode = ANY ($1::oid[])
    UNION SELECT 'pg_cast'::regclass, oid FROM pg_cast WHERE oid >= {FIRST_USER_OID} AND castfunc = ANY ($1::oid[])
    UNION SELECT 'pg_amproc'::regclass, oid FROM pg_amproc WHERE oid >= {FIRST_USER_OID} AND amproc = ANY ($1::oid[])
    UNION SELECT 'pg_proc'::regclass, aggfnoid FROM pg_aggregate
           WHERE aggfnoid >= {FIRST_USER_OID}
             AND ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn,
                       aggmfinalfn]::oid[] && $1::oid[]
),
reached(classid, objid) AS (
    SELECT classid, objid FROM seeds
    UNION
    SELECT x.classid, x.objid
      FROM reached r
     CROSS JOIN LATERAL (
        SELECT d.classid, d.objid FROM pg_depend d
         WHERE d.refclassid = r.classid AND d.refobjid = r.objid AND d.deptype <> 'e' AND d.objid >= {FIRST_USER_OID}
           AND r.classid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_opclass'::regclass,
                             'pg_opfamily'::regclass, 'pg_amop'::regclass, 'pg_amproc'::regclass)
        UNION ALL
        SELECT 'pg_type'::regclass, c.contypid FROM pg_constraint c
         WHERE r.classid = 'pg_constraint'::regclass AND c.oid = r.objid AND c.contypid <> 0
     ) x
)
SELECT 'routine' AS kind, objid AS oid, '' AS nspname, '' AS name
  FROM reached WHERE classid = 'pg_proc'::regclass AND objid >= {FIRST_USER_OID}
UNION
SELECT 'write', tgrelid, '', '' FROM reached JOIN pg_trigger t ON classid = 'pg_trigger'::regclass AND t.oid = objid
UNION
SELECT CASE WHEN a.attgenerated = 'v' THEN 'read' ELSE 'write' END, adrelid, '', ''
  FROM reached JOIN pg_attrdef f ON classid = 'pg_attrdef'::regclass AND f.oid = objid
  JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
UNION
SELECT 'write', conrelid, '', '' FROM reached
  JOIN pg_constraint c ON classid = 'pg_constraint'::regclass AND c.oid = objid WHERE conrelid <> 0
UNION
SELECT CASE WHEN ev_type = '1' THEN 'read' ELSE 'write' END, ev_class, '', ''
  FROM reached JOIN pg_rewrite r ON classid = 'pg_rewrite'::regclass AND r.oid = objid
UNION
SELECT 'read', polrelid, '', '' FROM reached JOIN pg_policy p ON classid = 'pg_policy'::regclass AND p.oid = objid
UNION
SELECT 'write', indrelid, '', '' FROM reached JOIN pg_index i ON classid = 'pg_class'::regclass AND i.indexrelid = objid
UNION
SELECT 'read', c.oid, '', '' FROM reached JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid
 WHERE c.relkind NOT IN ('i', 'I')
UNION
SELECT 'type', t.oid, n.nspname::text, t.typname::text
  FROM reached JOIN pg_type t ON classid = 'pg_type'::regclass AND t.oid = objid
  JOIN pg_namespace n ON n.oid = typnamespace
UNION
SELECT 'operator', o.oid, '', o.oprname::text
  FROM reached JOIN pg_operator o ON classid = 'pg_operator'::regclass AND o.oid = objid
UNION
SELECT 'ddl', objid, '', '' FROM reached WHERE classid = 'pg_event_trigger'::regclass
UNION
SELECT 'anywhere', objid, '', '' FROM reached
 WHERE classid IN ('pg_cast'::regclass, 'pg_amproc'::regclass, 'pg_opclass'::regclass, 'pg_conversion'::regclass,
                   'pg_ts_parser'::regclass, 'pg_ts_template'::regclass, 'pg_am'::regclass)
"""

_SIGNED = (
    "pg_proc", "pg_aggregate", "pg_trigger", "pg_rewrite", "pg_policy", "pg_operator", "pg_cast", "pg_amproc",
    "pg_attrdef", "pg_constraint", "pg_inherits", "pg_event_trigger", "pg_extension", "pg_type", "pg_index",
)  # fmt: skip
SIGNATURE = "SELECT concat_ws('|', " + ", ".join(
    f"(SELECT concat_ws(',', count(*), sum(hashtextextended(t.xmin::text || t.ctid::text, 0))) FROM {name} t)"
    for name in _SIGNED
) + ") AS signature"  # fmt: skip
"""Row versions and places: a new, changed or removed row changes the sum. Frozen rows keep their xmin."""
