"""What every module of the product has: a contract in its docstring, typed packages, no state of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "engine", "server", "enterprise")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=identify)
def test_a_module_opens_with_its_contract(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_and_says_what_it_is(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_a_module_has_no_state_of_its_own(path: Path) -> None:
    """`global`, and containers that a module makes empty to fill them later, are state outside the server object."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"line {node.lineno}"
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        is_empty = (isinstance(value, ast.List) and not value.elts) or (isinstance(value, ast.Dict) and not value.keys)
        assert not is_empty, f"line {statement.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_no_bare_exception_is_raised(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            assert not (isinstance(raised, ast.Name) and raised.id in ("Exception", "BaseException")), (
                f"line {node.lineno}"
            )
