from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import setup_env

WHEEL = b"not really a wheel"


@pytest.fixture(autouse=True)
def no_pip_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A package index on loopback, and the folder it serves."""
    folder = tmp_path / "index"
    (folder / "simple" / "pip").mkdir(parents=True)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple/", folder
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


def publish(folder: Path, *names: str, digest: str | None = None) -> None:
    links = "".join(
        f'<a href="../../files/{name}#sha256={digest or hashlib.sha256(WHEEL).hexdigest()}">{name}</a>\n'
        for name in names
    )
    (folder / "simple" / "pip" / "index.html").write_text(links)
    (folder / "files").mkdir()
    for name in names:
        (folder / "files" / name).write_bytes(WHEEL)


def test_the_newest_final_release_comes_first() -> None:
    names = [
        "pip-9.0-py3-none-any.whl",
        "pip-25.1.1-py3-none-any.whl",
        "pip-26.0b1-py3-none-any.whl",
        "pip-25.1.tar.gz",
    ]
    assert setup_env.newest_first(names) == ["pip-25.1.1-py3-none-any.whl", "pip-9.0-py3-none-any.whl"]


def test_options_of_pip_are_read_as_pip_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup_env.pip_option("extra-index-url", "PIP_EXTRA_INDEX_URL") == []
    system = tmp_path / "xdg" / "pip" / "pip.conf"
    user = tmp_path / "home" / ".config" / "pip" / "pip.conf"
    for path, text in (
        (system, "[global]\nextra-index-url = a\n"),
        (user, "[global]\nextra-index-url =\n    b\n    c\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert setup_env.pip_option("extra-index-url", "PIP_EXTRA_INDEX_URL") == ["b", "c"]
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "d")
    assert setup_env.pip_option("extra-index-url", "PIP_EXTRA_INDEX_URL") == ["d"]


def test_a_wheel_comes_from_the_configured_index(
    index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = index
    publish(folder, "pip-24.0-py3-none-any.whl", "pip-25.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    (wheel,) = setup_env.index_wheel(tmp_path)
    assert (wheel.name, wheel.read_bytes()) == ("pip-25.0-py3-none-any.whl", WHEEL)


def test_a_wheel_that_does_not_match_its_digest_is_not_used(
    index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = index
    publish(folder, "pip-25.0-py3-none-any.whl", digest="0" * 64)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    assert list(setup_env.index_wheel(tmp_path)) == []
    assert "does not match its digest" in capsys.readouterr().err


def test_an_index_that_does_not_answer_is_told_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
    assert list(setup_env.index_wheel(tmp_path)) == []
    assert "did not answer" in capsys.readouterr().err


def test_without_any_configuration_no_index_is_guessed(tmp_path: Path) -> None:
    assert list(setup_env.index_wheel(tmp_path)) == []


def test_wheels_that_lie_on_this_machine_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "pip-25.0-py3-none-any.whl").write_bytes(WHEEL)
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://example.invalid/links {folder}")
    monkeypatch.setattr(setup_env, "WHEEL_DIR", tmp_path / "nothing")
    assert list(setup_env.local_wheels()) == [folder / "pip-25.0-py3-none-any.whl"]


def test_the_environment_is_current_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("a==1\n")
    monkeypatch.setattr(setup_env, "LOCK", lock)
    stamp = tmp_path / "stamp"
    assert not setup_env.is_current(stamp, dev=False)
    stamp.write_text(setup_env.fingerprint(dev=False))
    assert setup_env.is_current(stamp, dev=False)
    lock.write_text("a==2\n")
    assert not setup_env.is_current(stamp, dev=False)


def test_an_interpreter_that_is_gone_does_not_work(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(tmp_path / "gone")
    assert not setup_env.works(link)
