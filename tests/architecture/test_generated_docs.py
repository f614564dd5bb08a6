"""Documentation that is made from the code is up to date, and what must be documented is."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from server.config import SETTINGS, Config, load_config
from tools import gen_docs

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
CODE = "".join(path.read_text() for package in ("engine", "server") for path in (ROOT / package).rglob("*.py"))
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", list(gen_docs.outputs()), ids=identify)
def test_a_generated_part_is_up_to_date(path: Path) -> None:
    assert path.read_text() == gen_docs.outputs()[path], "run `make docs`"


def test_every_generated_block_has_its_place() -> None:
    assert gen_docs.used_blocks() == set(gen_docs.BLOCKS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented_and_used(setting: object) -> None:
    name = getattr(setting, "name", "")
    assert f"`{name}`" in (ROOT / "docs" / "settings.md").read_text()
    section, _, field = name.partition(".")
    assert re.search(rf"\b{section}\.{field}\b|\b(settings|config|section|limits|self\._\w+)\.{field}\b", CODE), (
        "nothing reads it"
    )


@pytest.mark.parametrize("name", ["minimal.toml", "full.toml"])
def test_a_sample_configuration_is_valid(name: str) -> None:
    assert load_config(config_file=ROOT / "deploy" / "config" / name).file is not None


def test_the_full_sample_names_every_setting_with_a_default_that_works(tmp_path: Path) -> None:
    text = re.sub(r"^#(\w+ = )", r"\1", (ROOT / "deploy" / "config" / "full.toml").read_text(), flags=re.MULTILINE)
    tree = tomllib.loads(text)
    assert [f"{section}.{field}" for section, fields in tree.items() for field in fields] == [s.name for s in SETTINGS]
    sample = tmp_path / "rustydb.toml"
    sample.write_text(text)
    default, given = Config(), load_config(config_file=sample)
    for name in ("pool", "session", "tls", "auth", "security", "log", "events", "features"):
        assert getattr(given, name) == getattr(default, name)


@pytest.mark.parametrize("path", DOCS, ids=identify)
def test_a_link_in_the_documentation_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=identify)
def test_a_file_named_in_the_documentation_exists(path: Path) -> None:
    for name in re.findall(
        r"`((?:protocol|engine|server|enterprise|tests|tools|deploy|docs|benchmarks)/[\w./-]+)`", path.read_text()
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", DOCS, ids=identify)
def test_a_symbol_named_in_the_documentation_exists(path: Path) -> None:
    for name, symbol in re.findall(r"`([\w/]+\.py)::([\w.]+)`", path.read_text()):
        body: list[ast.stmt] = ast.parse((ROOT / name).read_text()).body
        for part in symbol.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{name}::{symbol}"
            body = getattr(found[0], "body", [])


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"]
    assert [page for page in pages if f"({page})" not in index] == []
