"""Side by side: the bare engine, PgBouncer and RustyDB on one machine in one run, and the ratios between them.

`python -m benchmarks` starts all three with the same engine settings, measures them in turn (A B C A B C ..., medians),
prints a table and writes build/benchmarks/<time>.json. `measure` holds the rounds, `servers` the three, `workloads`
what is measured, `clients` the load generators that run as processes of their own, `report` the table.
"""
