"""The extension surface: everything a feature may import of the server. Core features use the same.

- `events`: what can have happened; `bus`: how it is delivered
- `hooks`: where a feature may change what happens; `transactions`: how it takes part in a commit
- `context`: what it sees of a session and of a statement
- `commands`: admin SQL; `grammar` and `lexer` parse it; `http_routes`: its pages
- `feature`: what a feature is; `services`: how features find one another

A leaf: imports `protocol` and nothing else of `server`.
"""
