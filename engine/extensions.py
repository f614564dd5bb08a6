"""Extensions that PostgreSQL gives to superusers alone, and RustyDB to whoever may create objects in the database.

PostgreSQL 18 reads control files from `extension_control_path`. Ours stands first in it and has, for each extension of
`LISTED_EXTENSIONS`, the installed control file with `trusted = true`: the engine itself then runs the script as the
internal superuser, inside the client's transaction, and the extension belongs to whoever created it. CREATE, ALTER and
DROP EXTENSION, DO blocks and pg_restore need nothing from the front end. The scripts of most stay where they
are installed. Those of foreign data wrappers are copied with a line more: nobody but a superuser could use the wrapper
or grant its use.

Before PostgreSQL 18 there is no such setting, and the listed extensions are a superuser's, as PostgreSQL has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine.layout import DataLayout, directory_error, write_private_file
from engine.osuser import OsUsers
from engine.programs import Programs

LISTED_EXTENSIONS: Final = (
    "autoinc",
    "bloom",
    "dblink",
    "dict_xsyn",
    "earthdistance",
    "insert_username",
    "moddatetime",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_visibility",
    "pgrowlocks",
    "pgstattuple",
    "postgres_fdw",
    "refint",
    "vector",
)
"""Not trusted, and safe to give: no file or program access, and scripts that run nothing of the schema they are created
in. Left out: file_fdw (files), pageinspect and pg_surgery (pages past every policy), pg_walinspect and amcheck (their
functions would still be a superuser's alone)."""

_WRAPPERS: Final = {"dblink": "dblink_fdw", "postgres_fdw": "postgres_fdw"}
_FIRST_MAJOR: Final = 18
_OVERRIDDEN: Final = re.compile(r"^\s*(trusted|superuser|directory)\s*=.*\n?", re.MULTILINE | re.IGNORECASE)


def write_control_files(layout: DataLayout, users: OsUsers, programs: Programs) -> Path | None:
    """Write our control files; returns what `extension_control_path` is to begin with.

    None where the engine has no such setting, or could not be told of a directory under this name.
    """
    installed = _installed_directory(programs)
    if programs.major < _FIRST_MAJOR or installed is None or set(':"\n') & set(str(layout.data_dir)):
        return None
    target = layout.control_files
    try:
        wanted = dict(_files(installed, target))
        for stale in set(target.iterdir()) - wanted.keys():
            stale.unlink(missing_ok=True)
        changed = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    except OSError as error:
        raise directory_error(target, error) from error
    for path in changed:
        write_private_file(path, wanted[path], users.frontend, mode=0o640)
    return layout.extensions


def _installed_directory(programs: Programs) -> Path | None:
    """Where the installation has its control files: relative to its programs, or where Debian puts them."""
    root = programs.bin_dir.parent
    for directory in (
        root / "share" / "extension",
        root / "share" / "postgresql" / "extension",
        Path(f"/usr/share/postgresql/{programs.major}/extension"),
    ):
        if (directory / "plpgsql.control").exists():
            return directory
    return None


def _files(installed: Path, target: Path) -> Iterator[tuple[Path, str]]:
    for name in LISTED_EXTENSIONS:
        control = installed / f"{name}.control"
        if not control.exists():
            continue
        wrapper = _WRAPPERS.get(name)
        scripts = installed if wrapper is None else target
        yield target / control.name, _trusted(control.read_text(encoding="utf-8"), scripts)
        if wrapper is not None:
            for script in sorted(installed.glob(f"{name}--*.sql")):
                text = script.read_text(encoding="utf-8")
                yield target / script.name, text if "--" in script.stem[len(name) + 2 :] else _granting(text, wrapper)


def _trusted(control: str, scripts: Path) -> str:
    quoted = str(scripts).replace("'", "''")
    return _OVERRIDDEN.sub("", control).rstrip("\n") + f"\ndirectory = '{quoted}'\nsuperuser = true\ntrusted = true\n"


def _granting(script: str, wrapper: str) -> str:
    return f"{script}\nGRANT USAGE ON FOREIGN DATA WRAPPER {wrapper} TO @extowner@ WITH GRANT OPTION;\n"
