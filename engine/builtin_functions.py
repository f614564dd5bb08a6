"""Which functions of PostgreSQL itself, and of the extensions shipped with it, may leave state behind in a session.

The rule, applied to `pg_proc` by `engine.catalog_load`: a built-in function declared immutable or stable is harmless
unless it runs a query text it is given; a volatile one is not, unless it is listed here. The lists were checked
against the catalog of PostgreSQL 18: a function that another version has and they lack is not trusted.
"""

from __future__ import annotations

PRECISE_STATE_FUNCTIONS = frozenset(
    {
        "set_config",
        "setseed",
        "pg_notify",
        "pg_advisory_lock",
        "pg_advisory_lock_shared",
        "pg_try_advisory_lock",
        "pg_try_advisory_lock_shared",
        "pg_advisory_unlock",
        "pg_advisory_unlock_shared",
        "pg_advisory_unlock_all",
        "nextval",
        "setval",
        "currval",
        "lastval",
    }
)
"""Statement analysis knows exactly what a direct call of these leaves behind. Inside a routine or a view they count
as unproved, except those of HARMLESS_VOLATILE.
"""

RUNS_QUERY_TEXT = frozenset(
    {
        "query_to_xml",
        "query_to_xmlschema",
        "query_to_xml_and_xmlschema",
        "cursor_to_xml",
        "cursor_to_xmlschema",
        "table_to_xml",
        "table_to_xml_and_xmlschema",
        "schema_to_xml",
        "schema_to_xml_and_xmlschema",
        "database_to_xml",
        "database_to_xml_and_xmlschema",
        "ts_stat",
        "ts_rewrite",
        "crosstab",
        "crosstab2",
        "crosstab3",
        "crosstab4",
        "connectby",
        "xpath_table",
    }
)
"""Execute a text, or read whatever relation they are told to, whatever their volatility says."""

_TIME_CHANCE_IDENTITY = """
clock_timestamp timeofday random random_normal gen_random_uuid uuidv4 uuidv7 pg_sleep pg_sleep_for pg_sleep_until
current_query array_sample array_shuffle system bernoulli
"""

# Their session part (currval, lastval) is followed by statement analysis.
_SEQUENCES = "nextval setval currval lastval pg_sequence_last_value pg_get_sequence_data"

_END_WITH_TRANSACTION = """
pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
pg_notify lo_create lo_creat lo_open lo_close lo_unlink lo_import lo_export lo_get lo_put lo_from_bytea lo_lseek
lo_lseek64 lo_tell lo_tell64 lo_truncate lo_truncate64 loread lowrite pg_export_snapshot
pg_replication_origin_xact_setup pg_replication_origin_xact_reset
"""

_READ_ONLY = """
pg_relation_size pg_table_size pg_indexes_size pg_total_relation_size pg_database_size pg_tablespace_size
pg_ls_dir pg_ls_logdir pg_ls_waldir pg_ls_tmpdir pg_ls_archive_statusdir pg_ls_summariesdir pg_ls_logicalmapdir
pg_ls_logicalsnapdir pg_ls_replslotdir pg_read_file pg_read_binary_file pg_stat_file pg_current_logfile
pg_control_system pg_control_checkpoint pg_control_recovery pg_control_init pg_hba_file_rules pg_ident_file_mappings
pg_show_all_file_settings pg_config pg_blocking_pids pg_safe_snapshot_blocking_pids pg_isolation_test_session_is_blocked
pg_lock_status pg_prepared_xact pg_get_backend_memory_contexts pg_get_shmem_allocations pg_get_shmem_allocations_numa
pg_get_aios pg_get_wait_events pg_notification_queue_usage pg_is_in_recovery pg_is_wal_replay_paused
pg_get_wal_replay_pause_state pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
pg_current_wal_lsn pg_current_wal_insert_lsn pg_current_wal_flush_lsn pg_get_wal_summarizer_state
pg_available_wal_summaries pg_wal_summary_contents pg_get_replication_slots pg_show_replication_origin_status
pg_replication_origin_progress pg_xact_commit_timestamp pg_xact_commit_timestamp_origin pg_last_committed_xact
pg_get_multixact_members pg_tablespace_databases pg_stat_get_activity pg_stat_get_progress_info
pg_mcv_list_items pg_stat_get_wal_receiver pg_stat_get_recovery_prefetch pg_stat_get_subscription pg_stat_have_stats
pg_get_loaded_modules pg_collation_actual_version pg_database_collation_actual_version pg_timezone_names
pg_numa_available pg_stat_get_wal_senders pg_stat_get_io pg_stat_get_backend_io pg_stat_get_backend_wal
pg_stat_get_xact_blocks_fetched pg_stat_get_xact_blocks_hit pg_stat_get_xact_function_calls
pg_stat_get_xact_function_self_time pg_stat_get_xact_function_total_time pg_stat_get_xact_numscans
pg_stat_get_xact_tuples_deleted pg_stat_get_xact_tuples_fetched pg_stat_get_xact_tuples_hot_updated
pg_stat_get_xact_tuples_inserted pg_stat_get_xact_tuples_newpage_updated pg_stat_get_xact_tuples_returned
pg_stat_get_xact_tuples_updated pg_xact_status txid_status pg_partition_tree pg_partition_ancestors pg_jit_available
pg_get_wal_resource_managers pg_replication_origin_session_is_setup pg_replication_origin_session_progress
pg_logical_slot_peek_changes pg_logical_slot_peek_binary_changes amvalidate
"""

_ACT_ON_THE_CLUSTER = """
pg_logical_slot_get_changes pg_logical_slot_get_binary_changes
pg_cancel_backend pg_terminate_backend pg_log_backend_memory_contexts pg_reload_conf pg_rotate_logfile pg_switch_wal
pg_create_restore_point pg_promote pg_wal_replay_pause pg_wal_replay_resume pg_log_standby_snapshot
pg_logical_emit_message pg_drop_replication_slot pg_replication_slot_advance pg_replication_origin_create
pg_replication_origin_drop pg_replication_origin_advance pg_replication_origin_oid pg_sync_replication_slots
pg_import_system_collations pg_nextoid brin_summarize_new_values brin_summarize_range brin_desummarize_range
gin_clean_pending_list pg_restore_relation_stats pg_clear_relation_stats pg_restore_attribute_stats
pg_clear_attribute_stats pg_stat_force_next_flush pg_stat_reset pg_stat_reset_shared pg_stat_reset_slru
pg_stat_reset_single_table_counters pg_stat_reset_single_function_counters pg_stat_reset_replication_slot
pg_stat_reset_subscription_stats pg_stat_reset_backend_stats pg_stat_clear_snapshot
"""

# Called by the engine with arguments no client can give, or as a trigger.
_INTERNAL = """
RI_FKey_check_ins RI_FKey_check_upd RI_FKey_cascade_del RI_FKey_cascade_upd RI_FKey_restrict_del RI_FKey_restrict_upd
RI_FKey_setnull_del RI_FKey_setnull_upd RI_FKey_setdefault_del RI_FKey_setdefault_upd RI_FKey_noaction_del
RI_FKey_noaction_upd unique_key_recheck suppress_redundant_updates_trigger tsvector_update_trigger
tsvector_update_trigger_column fmgr_internal_validator fmgr_c_validator fmgr_sql_validator plpgsql_validator
plpgsql_call_handler plpgsql_inline_handler
"""

HARMLESS_VOLATILE = frozenset(
    name
    for names in (
        _TIME_CHANCE_IDENTITY,
        _SEQUENCES,
        _END_WITH_TRANSACTION,
        _READ_ONLY,
        _ACT_ON_THE_CLUSTER,
        _INTERNAL,
    )
    for name in names.split()
)
"""Built-in functions declared volatile whose effect is over with the transaction, or is not the session's."""

_SHIPPED = """
amcheck autoinc bloom btree_gin btree_gist citext cube dict_int dict_xsyn earthdistance fuzzystrmatch hstore
insert_username intagg intarray isn lo ltree moddatetime pageinspect pg_buffercache pg_freespacemap
pg_logicalinspect pg_prewarm pg_stat_statements pg_surgery pg_trgm pg_visibility pg_walinspect pgcrypto pgrowlocks
pgstattuple plpgsql seg sslinfo tcn tsm_system_rows tsm_system_time unaccent uuid-ossp xml2
"""
SHIPPED_EXTENSIONS = frozenset(_SHIPPED.split())
"""Extensions of the PostgreSQL source tree whose C functions keep nothing in the session, but for what
SESSION_EXTENSION_FUNCTIONS and RUNS_QUERY_TEXT name. Left out on purpose: dblink and postgres_fdw (connections of
their own), refint (plans of its own), tablefunc and spi helpers that run the text they are given.
"""

SESSION_EXTENSION_FUNCTIONS = frozenset({"set_limit", "isn_weak"})
"""Set a variable of the backend that nothing shows: pg_trgm's threshold, isn's weak mode."""
