"""RustyDB's own version, from the metadata of what is installed."""

from __future__ import annotations

from importlib import metadata


def rustydb_version() -> str:
    """As in pyproject.toml; `0+unknown` where the packages are run without having been installed or linked."""
    try:
        return metadata.version("rustydb")
    except metadata.PackageNotFoundError:
        return "0+unknown"
