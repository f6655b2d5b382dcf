"""The registry: which clusters there are, how to reach them, and what is still healthy there.

Everything here is pure but :func:`load_registry` and :func:`deployment_sql_path`, which look at the file
system. A mistake is one sentence that names the key, what was found and what was expected; a mistake in one
cluster disables that cluster alone, so that the DAGs always load. Texts that may hold a secret (commands,
URLs with a password) are never repeated.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from bluegreen.exceptions import RefusedError, RegistryError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
MAX_EXPIRES_AFTER_SECONDS = 20 * 86400
"""The apply delay that holds a standby ends after 20 days; a checkpoint must not outlive it."""
MAX_REWIND_TIMEOUT_SECONDS = 6 * 3600

_CLUSTER_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,63}")
_MEMBER_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.:-]{0,252}")
_HOST_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,252}")
_CONN_ID = re.compile(r"[a-zA-Z0-9_.-]{1,250}")
_OS_USER = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,31}")
_HOST_KEY = re.compile(r"([a-z][a-zA-Z0-9@.-]{2,63}) +([A-Za-z0-9+/]+={0,2})")
_QUANTITY = re.compile(r"([0-9]{1,18}) ?([A-Za-z]*)")
_HARMLESS = re.compile(r"[A-Za-z0-9_ .,+/-]{1,40}")
_PRIVATE_KEYS = {"sql", "command", "checks", "start", "stop", "status", "patronictl"}

# PostgreSQL's memory units (config-setting.html, "Numeric with Unit"): the multiplier is 1024, not 1000.
_SIZE_UNITS = {"": 1, "B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_DURATION_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _expected(text: str) -> PydanticCustomError:
    return PydanticCustomError("expected", "{text}", {"text": text})


def _sentence(text: str) -> PydanticCustomError:
    return PydanticCustomError("sentence", "{text}", {"text": text})


def _quantity(value: object, units: Mapping[str, int], fold: bool, expected: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return value
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        unit = match[2].upper() if fold else match[2]
        if unit in units:
            return int(match[1]) * units[unit]
    raise _expected(expected)


def _size(value: object) -> int:
    return _quantity(value, _SIZE_UNITS, True, "a size such as 64MB")


def _duration(value: object) -> int:
    return _quantity(value, _DURATION_UNITS, False, "a duration such as 30m or 24h")


def _positive_duration(value: object) -> int:
    if (seconds := _duration(value)) > 0:
        return seconds
    raise _expected("a duration longer than 0")


def _duration_up_to(most: int, expected: str) -> Callable[[object], int]:
    def duration(value: object) -> int:
        if (seconds := _positive_duration(value)) <= most:
            return seconds
        raise _expected(expected)

    return duration


_expiry = _duration_up_to(MAX_EXPIRES_AFTER_SECONDS, "at most 20d, because the hold itself ends then")
_rewind_timeout = _duration_up_to(
    MAX_REWIND_TIMEOUT_SECONDS, "at most 6h, because the task that rewinds is ended some time"
)


def _seconds(value: object) -> float:
    if isinstance(value, float) and math.isfinite(value) and value >= 0:
        return value
    return float(_quantity(value, _DURATION_UNITS, False, "seconds, such as 30"))


def _percent(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 100:
        return float(value)
    raise _expected("a percentage from 0 to below 100, such as 15")


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return bool(_HOST_NAME.fullmatch(value))
    return "%" not in value


def _url(value: str) -> str:
    expected = _expected("a URL such as http://10.0.0.1:8008, without user, password, path or query")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise expected from None
    plain = value.isascii() and value.isprintable() and " " not in value
    bare = parts.path in ("", "/") and not (parts.query or parts.fragment or "?" in value or "#" in value)
    sound = parts.scheme in ("http", "https") and "@" not in parts.netloc and port != 0
    if plain and bare and sound and _is_address(parts.hostname or ""):
        return value.rstrip("/")
    raise expected


def _address(value: str) -> str:
    if _is_address(value):
        return value
    raise _expected("a host name or an IP address")


def _member(value: str) -> str:
    if _MEMBER_NAME.fullmatch(value):
        return value
    raise _expected("a member's name of letters, digits, '_', '.', ':' and '-'")


def _conn_id(value: str) -> str:
    if _CONN_ID.fullmatch(value):
        return value
    raise _expected("the id of an Airflow connection, such as orders_ssh")


def _os_user(value: str) -> str:
    if _OS_USER.fullmatch(value):
        return value
    raise _expected("the name of an operating system user, such as postgres")


def _host_key(value: str) -> str:
    match = _HOST_KEY.fullmatch(value.strip())
    try:
        if match and base64.b64decode(match[2], validate=True):
            return f"{match[1]} {match[2]}"
    except binascii.Error:
        pass
    raise _expected("a public host key of the form '<type> <base64>', such as ssh-ed25519 AAAA...")


def _line(value: str) -> str:
    if value.strip() and value.isprintable():
        return value
    raise _expected("one line of text that is not empty")


def _absolute_path(value: str) -> str:
    if value.startswith("/") and value.isprintable():
        return value
    raise _expected("an absolute path")


def _statement(value: str) -> str:
    if value.strip() and "\x00" not in value:
        return value
    raise _expected("a text that is not empty")


def _below_include(value: str) -> str:
    if value.strip() and value.isprintable() and not value.startswith("/") and ".." not in value.split("/"):
        return value
    raise _expected("the path of a file below include/, such as releases/current.sql")


SizeBytes = Annotated[int, BeforeValidator(_size)]
DurationSeconds = Annotated[int, BeforeValidator(_duration)]
Member = Annotated[str, AfterValidator(_member)]
Address = Annotated[str, AfterValidator(_address)]
ConnId = Annotated[str, AfterValidator(_conn_id)]
Line = Annotated[str, AfterValidator(_line)]
_NON_EMPTY_TEXT = Annotated[str, AfterValidator(_statement)]


class _Model(BaseModel):
    """Frozen, strict about types, and refusing every key it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)


class NodeCommands(_Model):
    """How Patroni is run on a node; ``{member}`` stands for the member's name."""

    patroni_config: Annotated[str, AfterValidator(_absolute_path)] = "/etc/patroni/patroni.yml"
    patronictl: Line = "patronictl"
    os_user: Annotated[str, AfterValidator(_os_user)] = "postgres"
    start: Line = "sudo systemctl start patroni"
    stop: Line = "sudo systemctl stop patroni"
    status: Line = "systemctl is-active patroni"

    def for_member(self, member: str) -> NodeCommands:
        """Return the commands with ``{member}`` replaced by a member's name.

        Raises :class:`RefusedError` where the name, which comes from the cluster, could mean something to a
        shell or leave the folder that the path names.
        """
        values = self.model_dump()
        if not any("{member}" in text for text in values.values()):
            return self
        if not _MEMBER_NAME.fullmatch(member):
            raise RefusedError(
                f"member {member[:80]!r} cannot be put into the commands of 'node': "
                "expected a name of letters, digits, '_', '.', ':' and '-'"
            )
        return NodeCommands(**{key: text.replace("{member}", member) for key, text in values.items()})


class Limits(_Model):
    """What counts as healthy; bytes, seconds and percent."""

    lag_bytes: SizeBytes = 64 * 1024**2
    lag_seconds: Annotated[float, BeforeValidator(_seconds)] = 30.0
    disk_free_percent: Annotated[float, BeforeValidator(_percent)] = 15.0
    slot_wal_bytes: SizeBytes = Field(default=10 * 1024**3, validation_alias="slot_wal")
    replay_age_seconds: DurationSeconds = Field(default=86400, validation_alias="replay_age")


class Deployment(_Model):
    """One deployment that may be run by name: a file of SQL or a command, and what proves that it worked."""

    sql: Annotated[str, AfterValidator(_below_include)] | None = None
    command: _NON_EMPTY_TEXT | None = None
    checks: Annotated[list[_NON_EMPTY_TEXT], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_of_sql_and_command(self) -> Deployment:
        if (self.sql is None) == (self.command is None):
            found = "neither 'sql' nor 'command'" if self.sql is None else "both 'sql' and 'command'"
            raise _sentence(f"found {found}, expected exactly one of them")
        return self


class Cluster(_Model):
    """One cluster: how to reach it and what it may do. Who its members are is discovered, not configured."""

    name: Annotated[str, Field(pattern=f"^{_CLUSTER_NAME.pattern}$")]
    patroni: Annotated[list[Annotated[str, AfterValidator(_url)]], Field(min_length=1)]
    patroni_conn_id: ConnId | None = None
    postgres_conn_id: ConnId
    ssh_conn_id: ConnId
    ssh_hosts: dict[Member, Address] = Field(default_factory=dict)
    ssh_host_keys: dict[Member, Annotated[str, AfterValidator(_host_key)]] = Field(default_factory=dict)
    node: NodeCommands = NodeCommands()
    limits: Limits = Limits()
    expires_after_seconds: Annotated[int, BeforeValidator(_expiry)] = Field(
        default=86400, validation_alias="expires_after"
    )
    auto_release: bool = True
    ask_timeout_seconds: Annotated[int, BeforeValidator(_positive_duration)] = Field(
        default=3600, validation_alias="ask_timeout"
    )
    ask_default: Literal["rollback", "resume"] = "rollback"
    rewind_timeout_seconds: Annotated[int, BeforeValidator(_rewind_timeout)] = Field(
        default=3600, validation_alias="rewind_timeout"
    )
    adhoc: bool = False
    airflow_database: bool = False
    deployments: dict[Annotated[str, AfterValidator(_line)], Deployment] = Field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        """The hosts of the ``patroni:`` URLs, in order and each once."""
        return list(dict.fromkeys(urlsplit(url).hostname or "" for url in self.patroni))


@dataclass(frozen=True)
class Registry:
    """The clusters that may be worked on, and for each one that may not, the sentence that says why."""

    clusters: dict[str, Cluster] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    source: str = "clusters.yaml"

    def get(self, name: str) -> Cluster:
        """Return a cluster by name.

        Raises :class:`RegistryError` with the sentence about its mistake, or with the names that are known.
        """
        if name in self.clusters:
            return self.clusters[name]
        if name in self.broken:
            raise RegistryError(self.broken[name])
        known = sorted({*self.clusters, *self.broken})
        listed = f"it has {', '.join(known)}" if known else "it has no cluster at all"
        raise RegistryError(
            f"{self.source}: there is no cluster {_shown_key(name)}{_did_you_mean(name, known)}; {listed}"
        )


def parse_registry(text: str, *, source: str) -> Registry:
    """Read the registry from its text; ``source`` is the name that the sentences begin with.

    Raises :class:`RegistryError` where the text as a whole is not a registry. A mistake inside one cluster,
    a key given twice there among them, only puts that cluster into ``broken``.
    """
    yaml = YAML(typ="safe", pure=True)  # YAML 1.2, which refuses duplicate keys
    try:
        root = yaml.compose(text)
    except Exception as error:  # ruamel.yaml answers some texts with a ValueError or a RecursionError
        raise RegistryError(f"{source}: {_yaml_sentence(error)}") from None
    if not isinstance(root, MappingNode):
        raise RegistryError(f"{source}: found {_node_kind(root)}, expected a mapping with the key 'clusters'")
    top = [(_node_key(key), value) for key, value in root.value]
    for key, _ in top:
        if key != "clusters":
            raise RegistryError(f"{source}: {_shown_key(key)} is not a known key{_did_you_mean(key, ['clusters'])}")
    if len(top) != 1:
        found = "the key 'clusters' twice" if top else "an empty mapping"
        raise RegistryError(f"{source}: found {found}, expected one key 'clusters'")
    entries = top[0][1]
    if isinstance(entries, ScalarNode) and entries.tag == "tag:yaml.org,2002:null":
        return Registry(source=source)  # every cluster below it is commented out
    if not isinstance(entries, MappingNode):
        raise RegistryError(f"{source}: clusters: found {_node_kind(entries)}, expected a mapping")

    clusters: dict[str, Cluster] = {}
    broken: dict[str, str] = {}
    for key_node, value_node in entries.value:
        name = _node_key(key_node)
        where = f"{source}: cluster {_shown_key(name)}: "
        if name in clusters or name in broken:
            clusters.pop(name, None)
            broken[name] = f"{where}it is there twice, expected once"
            continue
        try:
            clusters[name] = _parse_cluster(name, _construct(yaml, value_node))
        except _MistakesError as mistakes:
            broken[name] = where + str(mistakes)
    return Registry(clusters, broken, source)


def load_registry(path: Path | None = None) -> Registry:
    """Read the registry from ``path``, else from the file that ``BLUEGREEN_CLUSTERS`` names.

    Without either it is ``include/clusters.yaml`` of the project. Raises :class:`RegistryError`.
    """
    chosen = path or Path(os.environ.get("BLUEGREEN_CLUSTERS") or PROJECT_ROOT / "include" / "clusters.yaml")
    try:
        text = chosen.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RegistryError(
            f"the registry {chosen} does not exist: create it, or name another file in BLUEGREEN_CLUSTERS"
        ) from None
    except UnicodeDecodeError:
        raise RegistryError(f"{chosen}: found bytes that are not UTF-8, expected a YAML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its path is not valid"
        raise RegistryError(f"the registry {chosen} cannot be read: {reason}") from None
    return parse_registry(text, source=chosen.name)


def deployment_sql_path(include_dir: Path, relative: str) -> Path:
    """Return the file below ``include_dir`` that a deployment's ``sql`` names.

    Raises :class:`RefusedError` for an absolute path, for ``..``, for a link that leads outside and where
    there is no such file.
    """
    shown = f"the SQL file {relative[:200]!r}"
    if not relative.strip() or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise RefusedError(f"{shown} is refused: expected a path below include/ without '..'")
    try:
        base = include_dir.resolve(strict=True)
        target = (base / relative).resolve(strict=True)
        is_file = target.is_file()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL, a name that is too long
        raise RefusedError(f"{shown} does not exist below {include_dir}") from None
    if not target.is_relative_to(base):
        raise RefusedError(f"{shown} is refused: it is a link that leads outside {include_dir}")
    if not is_file:
        raise RefusedError(f"{shown} is not a file")
    return target


class _MistakesError(Exception):
    """All that is wrong with one cluster, as one sentence."""


def _construct(yaml: YAML, node: Node) -> object:
    try:
        return cast(object, yaml.constructor.construct_document(node))
    except Exception as error:  # see parse_registry
        raise _MistakesError(_yaml_sentence(error)) from None


def _parse_cluster(name: str, found: object) -> Cluster:
    if not _CLUSTER_NAME.fullmatch(name):
        raise _MistakesError("expected a name of 1 to 63 letters, digits, '_', '.' and '-'")
    if not isinstance(found, dict):
        raise _MistakesError(f"found {_found(found)}, expected a mapping")
    if "name" in found:
        raise _MistakesError("'name' is not a known key; the name is the key above it")
    if odd := [key for key in found if not isinstance(key, str)]:
        raise _MistakesError(f"found {_found(odd[0])} as a key, expected a text")
    try:
        return Cluster.model_validate({"name": name, **found}, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _MistakesError(_mistakes(error)) from None
    except RecursionError:
        raise _MistakesError("found a mapping that contains itself") from None


_EXPECTED_BY_TYPE = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_type": "a text",
    "too_short": "at least one entry",
}


def _mistakes(error: ValidationError) -> str:
    details = error.errors(include_url=False)
    return "; ".join(dict.fromkeys(_mistake(detail) for detail in details))


def _mistake(detail: ErrorDetails) -> str:
    keys = [part for part in detail["loc"] if part != "[key]"]
    path = _shown_path(keys)
    kind = detail["type"]
    if kind == "extra_forbidden":
        parent, key = _shown_path(keys[:-1]), str(keys[-1])
        where = f"{parent}: " if parent else ""
        return f"{where}{_shown_key(key)} is not a known key{_did_you_mean(key, _known_keys(keys[:-1]))}"
    if kind == "missing":
        return f"{path}: found nothing, expected this key"
    if kind == "sentence":
        return f"{path}: {detail['msg']}"
    if kind == "invalid_key":
        return f"{_shown_path(keys[:-1])}: found a key that is no text, expected a text"
    if kind == "expected":
        expected = detail["msg"]
    elif kind == "literal_error":
        expected = str(detail["ctx"]["expected"]).replace("'", "")
    else:
        expected = _EXPECTED_BY_TYPE.get(kind, "another value")
    value = detail["input"]
    private = isinstance(value, str) and bool(_PRIVATE_KEYS & {str(key) for key in keys})
    return f"{path}: found {_text_kind(value) if private else _found(value)}, expected {expected}"


def _known_keys(parents: list[int | str]) -> list[str]:
    models: dict[str, type[BaseModel]] = {"node": NodeCommands, "limits": Limits, "deployments": Deployment}
    model = models.get(str(parents[0]), Cluster) if parents else Cluster
    names = [str(info.validation_alias or name) for name, info in model.model_fields.items()]
    return [name for name in names if name != "name"]


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key[:100], list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _shown_key(key: str) -> str:
    return f"'{key}'" if _HARMLESS.fullmatch(key) else f"'{ascii(key[:40])[1:-1]}'"


def _shown_path(keys: Iterable[int | str]) -> str:
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            path += ("." if path else "") + _shown_key(key)[1:-1]
    return path


def _found(value: object) -> str:
    """Describe a value; a text that could hold a secret, and a structure of any size, only by its kind."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if abs(value) < 10**18 else "a very large number"
        case float():
            return str(value)
        case "":
            return "an empty text"
        case str():
            return f"'{value}'" if _HARMLESS.fullmatch(value) else _text_kind(value)
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "a mapping"
        case _:
            return f"a value of type {type(value).__name__}"


def _text_kind(value: str) -> str:
    return f"a text of {len(value)} characters that is not shown here" if value else "an empty text"


def _node_kind(node: Node | None) -> str:
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return "nothing"
    if isinstance(node, ScalarNode):
        return "a single value"
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def _node_key(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "a key that is no text"


def _yaml_sentence(error: Exception) -> str:
    """Say what is wrong with the YAML, without the excerpt that the library adds: it may hold a secret."""
    mark: Any = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    if isinstance(error, DuplicateKeyError):
        match = re.match(r'found duplicate key "([A-Za-z0-9_.-]{1,63})"', str(error.problem))
        return f"{where}the key {repr(match[1]) + ' ' if match else ''}is there twice, expected once"
    if isinstance(error, MarkedYAMLError) and error.problem:
        problem = re.sub(r"'[^']{4,}'|\"[^\"]{4,}\"", "a text", str(error.problem).splitlines()[0])
        return f"{where}this is not valid YAML: {problem[:120]}"
    if isinstance(error, YAMLError):
        return f"{where}this is not valid YAML"
    return "this is not valid YAML: it holds a value that cannot be read"
