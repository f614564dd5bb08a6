"""The front end: the process that clients talk to.

In the order to read it:

    cli, config, settings_table   how it is started, and what can be set
    app                           the composition root: what is made, in which order, and how it ends
    listener, handshake, auth     a client arrives: TLS, startup packet, host rules, SCRAM
    session, effects, extended    the virtual session and the query path
    statement, sql_guard          what a statement means, before it is forwarded
    pool/                         one budget of engine connections over (database, role)
    admin/                        SHOW POOLS and its kin
    http/, metrics                /metrics, /livez, /readyz
    extension/                    hooks, events, commands: all that features may use

Imports `engine` and `protocol`, never `enterprise`: features are found by entry point or by setting. Started with
`rustydb serve` or `python -m server serve`.
"""
