"""Who may import whom, beyond what .importlinter says: the surface that features see, and what protocol may use."""

from __future__ import annotations

import sys
from functools import cache

import grimp
import pytest

PACKAGES = ("protocol", "engine", "server", "enterprise")
# Named as in the standard library all the same: nothing beside them is ever run as a script.
SAME_NAME_ON_PURPOSE = {"protocol.trace", "server.http"}
# What a feature may import besides protocol and its own package (docs/decisions/0002-root-packages.md).
FEATURE_SURFACE = (
    "server.extension",
    "engine.control",
    "engine.catalog",
    "engine.backup_tools",
    "enterprise.contracts",
)


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def modules_of(package: str) -> list[str]:
    return sorted(module for module in graph().modules if is_in(module, (package,)))


def test_every_package_is_looked_at() -> None:
    assert all(len(modules_of(package)) > 0 for package in PACKAGES)


@pytest.mark.parametrize("lower", range(len(PACKAGES) - 1))
def test_no_layer_names_the_one_above_it_not_even_for_types(lower: int) -> None:
    for module in modules_of(PACKAGES[lower]):
        for imported in graph().find_modules_directly_imported_by(module):
            assert imported.partition(".")[0] not in PACKAGES[lower + 1 :], f"{module} imports {imported}"


@pytest.mark.parametrize("module", modules_of("protocol"))
def test_protocol_imports_itself_and_the_standard_library_only(module: str) -> None:
    for imported in graph().find_modules_directly_imported_by(module):
        top = imported.partition(".")[0]
        assert top == "protocol" or top in sys.stdlib_module_names, imported


@pytest.mark.parametrize("module", modules_of("server.extension"))
def test_server_extension_imports_nothing_else_of_server(module: str) -> None:
    for imported in graph().find_modules_directly_imported_by(module):
        assert not is_in(imported, ("server",)) or is_in(imported, ("server.extension",)), imported


@pytest.mark.parametrize("module", modules_of("enterprise"))
def test_a_feature_sees_the_extension_surface_and_no_other_feature(module: str) -> None:
    own = ".".join(module.split(".")[:2])
    for imported in graph().find_modules_directly_imported_by(module):
        if imported.partition(".")[0] in PACKAGES:
            assert is_in(imported, ("protocol", own, *FEATURE_SURFACE)), imported


@pytest.mark.parametrize("module", sorted({m for p in PACKAGES for m in modules_of(p)} - SAME_NAME_ON_PURPOSE))
def test_no_module_is_named_as_one_of_the_standard_library(module: str) -> None:
    # `python server/cli.py` would put the folder first on the path, and `queue.py` there would hide the real one.
    assert module.rpartition(".")[2] not in sys.stdlib_module_names - {"__main__"}
