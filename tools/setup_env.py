"""Makes `.venv`: the virtual environment with the exact versions of the lock files, and RustyDB itself as a link.

    python3 tools/setup_env.py [--dev]

Needs Python 3.11 or later and nothing else: the standard library alone, no python3-venv, no ensurepip, no pip. Run
again it does nothing unless a lock file, pyproject.toml, the interpreter or the place of the checkout has changed.

The virtual environment is made without pip. The pip that fills it is the first of these that is there:

1. the one in `.venv` already;
2. the one that `ensurepip` carries (python.org, pyenv, Fedora, Docker images; on Debian the package python3-venv);
3. the pip of the Python that runs this file, for `.venv` (`pip --python`);
4. a pip wheel on this machine: Debian's package python3-pip-whl, or a find-links directory of pip's configuration;
5. a pip wheel from the package index that pip is configured for (PIP_INDEX_URL, PIP_CONFIG_FILE, pip.conf);
6. Debian's package python3-pip-whl, downloaded from the machine's own mirror and unpacked in a temporary directory,
   which needs no root: neither the system nor the home directory is changed.

No address of an index is written here: what pip knows by itself or is configured with is used.
"""

from __future__ import annotations

import base64
import configparser
import fcntl
import hashlib
import html.parser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
OLDEST = (3, 11)
WHEEL_DIR = Path("/usr/share/python-wheels")
Command = list[str]


def main() -> int:
    if sys.version_info < OLDEST:
        print(
            f"RustyDB needs Python {OLDEST[0]}.{OLDEST[1]} or later, this is {sys.version.split()[0]}", file=sys.stderr
        )
        return 1
    dev = "--dev" in sys.argv[1:]
    stamp = ENVIRONMENT / (".stamp-dev" if dev else ".stamp")
    if is_current(stamp, dev=dev):
        return 0
    checkout = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(checkout, fcntl.LOCK_EX)  # two makes at once: the second finds the work done
    if is_current(stamp, dev=dev):
        return 0
    if not works(PYTHON):
        print(f"making {ENVIRONMENT.name} with Python {sys.version.split()[0]}", flush=True)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        venv.create(ENVIRONMENT, with_pip=False, symlinks=True)
    status = install([LOCK, DEV_LOCK] if dev else [LOCK])
    if status == 0:
        link_project()
        stamp.write_text(fingerprint(dev=dev))
        if dev:
            (ENVIRONMENT / ".stamp").write_text(fingerprint(dev=False))
    return status


def is_current(stamp: Path, *, dev: bool) -> bool:
    return stamp.is_file() and stamp.read_text() == fingerprint(dev=dev) and works(PYTHON)


def install(locks: list[Path]) -> int:
    with tempfile.TemporaryDirectory(prefix="rustydb-setup-") as scratch:
        pip = find_pip(Path(scratch))
        if pip is None:
            return 1
        print("installing " + " and ".join(lock.name for lock in locks), flush=True)
        arguments = [part for lock in locks for part in ("-r", str(lock))]
        status = subprocess.run([*pip, *INSTALL, "--no-deps", *arguments], cwd=ROOT).returncode
    if status != 0:
        print("setup: pip failed, see above; run the same command again to go on", file=sys.stderr)
    return status


INSTALL = ["install", "--quiet", "--quiet", "--no-input", "--disable-pip-version-check", "--root-user-action=ignore"]


def fingerprint(*, dev: bool) -> str:
    """Changes when the environment has to be looked at again."""
    digest = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    for path in [LOCK, *([DEV_LOCK] if dev else []), ROOT / "pyproject.toml", Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def works(python: Path) -> bool:
    """Whether the environment's interpreter runs and is new enough (it may be a link to one that is gone)."""
    check = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


# The project itself


def link_project() -> None:
    """Put the checkout on the environment's path, with the metadata and the console script of pyproject.toml.

    What an editable install does, without a build backend to download first.
    """
    import tomllib  # here, so that an older Python gets the sentence that says so

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = Path(
        subprocess.run(
            [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    for old in site.glob(f"{project['name']}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (site / "_rustydb_checkout.pth").write_text(f"{ROOT}\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "INSTALLER").write_text("tools/setup_env.py\n")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    written = [
        "_rustydb_checkout.pth",
        *(f"{info.name}/{name}" for name in ("METADATA", "INSTALLER", "RECORD", "entry_points.txt")),
    ]
    for name, target in project.get("scripts", {}).items():
        module, _, function = target.partition(":")
        script = ENVIRONMENT / "bin" / name
        script.write_text(f"#!{PYTHON}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n")
        script.chmod(0o755)
        written.append(os.path.relpath(script, site))
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in written))


# Finding a pip


def find_pip(scratch: Path) -> Command | None:
    """The command that runs a pip which installs into the environment."""
    if runs([str(PYTHON), "-m", "pip", "--version"]):
        return [str(PYTHON), "-m", "pip"]
    if importlib.util.find_spec("ensurepip") is not None and runs([str(PYTHON), "-m", "ensurepip"]):
        return [str(PYTHON), "-m", "pip"]
    if runs([sys.executable, "-m", "pip", "--python", str(PYTHON), "--version"]):
        return [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    for wheel in (*local_wheels(), *index_wheel(scratch), *debian_wheel(scratch)):
        command = [sys.executable, str(wheel / "pip"), "--python", str(PYTHON)]
        if runs([*command, "--version"]):
            return command
    print(
        "setup: no pip could be found or fetched. Any one of these helps:\n"
        "  - as root: apt-get install python3-venv   (or dnf install python3-pip, apk add py3-pip)\n"
        "  - set PIP_INDEX_URL to a package index that this machine reaches",
        file=sys.stderr,
    )
    return None


def runs(command: Command) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def newest_first(names: list[str]) -> list[str]:
    """Names of pip wheels, final releases only, the newest first."""

    def version(name: str) -> tuple[int, ...]:
        match = re.fullmatch(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl", name)
        return tuple(map(int, match.group(1).split("."))) if match else ()

    return sorted((name for name in names if version(name)), key=version, reverse=True)


def local_wheels() -> Iterator[Path]:
    """pip wheels on this machine: Debian's, and those of pip's find-links directories."""
    links = pip_option("find-links", "PIP_FIND_LINKS")
    for directory in (WHEEL_DIR, *(Path(link.removeprefix("file://")) for link in links if "://" not in link[4:])):
        if directory.is_dir():
            for name in newest_first([entry.name for entry in directory.iterdir()]):
                yield directory / name


def pip_option(option: str, variable: str) -> list[str]:
    """Values of one of pip's settings, the strongest first: environment, then its configuration files."""
    if os.environ.get(variable):
        return os.environ[variable].split()
    home = Path.home()
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    config_dirs = [Path(entry) for entry in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
    files = [
        *(directory / "pip" / "pip.conf" for directory in config_dirs),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        config_home / "pip" / "pip.conf",
        *([Path(os.environ["PIP_CONFIG_FILE"])] if os.environ.get("PIP_CONFIG_FILE") else []),
    ]
    found: list[str] = []
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_option(section, option):
                found = parser.get(section, option).split()
    return found


class _Links(html.parser.HTMLParser):
    """The links of an index page (PEP 503)."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def index_wheel(scratch: Path) -> Iterator[Path]:
    """pip's newest wheel from the configured index, checked against the digest that the index gives."""
    indexes = pip_option("index-url", "PIP_INDEX_URL") + pip_option("extra-index-url", "PIP_EXTRA_INDEX_URL")
    for index in indexes:
        page = index.rstrip("/") + "/pip/"
        try:
            links = _Links()
            links.feed(fetch(page).decode())
            by_name = {urllib.parse.urlsplit(link).path.rpartition("/")[2]: link for link in links.targets}
            for name in newest_first(list(by_name))[:1]:
                url = urllib.parse.urljoin(page, by_name[name])
                content = fetch(url)
                algorithm, _, digest = urllib.parse.urlsplit(url).fragment.partition("=")
                if digest and hashlib.new(algorithm, content).hexdigest() != digest:
                    print(f"setup: {name} does not match its digest, not used", file=sys.stderr)
                    continue
                (scratch / name).write_bytes(content)
                yield scratch / name
        except (OSError, ValueError) as error:
            print(f"setup: the configured package index did not answer: {error}", file=sys.stderr)


def fetch(url: str) -> bytes:
    """Credentials in the address, as pip takes them, become a header."""
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def debian_wheel(scratch: Path) -> Iterator[Path]:
    """pip's wheel out of Debian's own package, with package lists of our own where the system has none."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return
    package = "python3-pip-whl"
    print(f"fetching pip from Debian's package {package}", flush=True)
    lists, cache = scratch / "lists", scratch / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
    own += ["-o", "APT::Sandbox::User=" + ("root" if os.geteuid() == 0 else "")]
    for options in ([], own):
        if options:
            subprocess.run(["apt-get", "-qq", *options, "update"], cwd=scratch, capture_output=True, check=False)
        subprocess.run(["apt-get", "-qq", *options, "download", package], cwd=scratch, capture_output=True, check=False)
        for archive in scratch.glob(f"{package}_*.deb"):
            unpacked = scratch / "unpacked"
            subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=False)
            for name in newest_first([path.name for path in unpacked.rglob("pip-*.whl")]):
                yield next(unpacked.rglob(name))
            return


if __name__ == "__main__":
    sys.exit(main())
