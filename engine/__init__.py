"""The PostgreSQL underneath: running it, reaching it, asking it.

May import `protocol`, nothing of `server`: what happens here is told through an injected `EngineObserver`.

Life cycle
    cluster         the narrow interface `Cluster`, and `open_cluster(config)`
    embedded        a private PostgreSQL in the data directory: start, adopt, watch, restart, stop
    remote          somebody else's PostgreSQL or Citus, by connection string
    prepare         all that comes before an embedded postmaster; built on
                    osuser, nameless (who runs what), layout (directories, lock), programs, initialize (initdb),
                    postgres_conf, machine (settings)
    process         the postmaster as a process; launcher: the same for a front end without root
    engine_log      what the engine writes to its log
    readiness       whether it takes connections
    bootstrap       roles, the administrator, the control database; secret: our own role's, where nothing else names us

Reaching it
    address         where an engine is, and what proves a role there
    connect         dial and log in: address to `BackendConnection`
    connection      one backend: bytes in, expected replies out
    conninfo        connection strings, as libpq reads them

Asking it
    control         RustyDB's own queries
    capabilities    what the engine is and can do
    catalog         snapshots of a database's catalog, for statement analysis

Errors about the engine as a whole are the tree in `errors`; what it answers to one statement is not.
To see what an embedded engine does: its log is the logger `engine.postgres`; docs/decisions/0003 says who runs as whom.
"""
