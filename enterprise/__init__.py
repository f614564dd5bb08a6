"""Features beyond the core, one folder each. None yet.

A feature imports `server.extension`, `engine.control`, `engine.catalog`, `engine.backup_tools`, `protocol` and itself,
never another feature. It announces itself in the entry-point group `rustydb.features` of pyproject.toml, and runs where
`features.enabled` names it.
"""
