"""A node's own Patroni configuration: what is in effect, how to hold the member, how to let it go.

Sources: Patroni documentation, "YAML Configuration Settings" and "Dynamic Configuration Settings";
``patroni/config.py`` (``_build_effective_configuration``: parameters are merged, every other key of the
local ``postgresql`` section replaces the dynamic one) and ``patroni/postgresql/config.py``
(``_adjust_recovery_parameters``: a recovery parameter under ``parameters`` makes ``recovery_conf``
ignored).
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError as RuamelError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from bluegreen.exceptions import RefusedError
from bluegreen.recovery.versions import HoldMechanism

APPLY_DELAY = "20d"
"""Below the parameter's largest value, 2147483647 ms."""

HOLD_TAGS: dict[str, bool] = {"nofailover": True, "noloadbalance": True, "nosync": True, "clonefrom": False}
DISPLAY_PREFIX = "bluegreen_"
_STARTS = re.compile(r"(?:[ \t]*(?:#.*)?\n)*---(?:\s|\Z)")

_RECOVERY_PARAMETERS = frozenset(
    {
        "archive_cleanup_command",
        "promote_trigger_file",
        "recovery_end_command",
        "recovery_min_apply_delay",
        "restore_command",
        "trigger_file",
    }
)


@dataclass(frozen=True)
class NodeConfig:
    """What a node's configuration says about its member, without anything secret in its text form.

    :param data: the parsed configuration, all files of a folder merged.
    """

    data: Mapping[str, Any] = field(repr=False)

    @property
    def _postgresql(self) -> Mapping[str, Any]:
        return _mapping(self.data.get("postgresql"))

    @property
    def member(self) -> str:
        """The member's name."""
        return self._text("name")

    @property
    def scope(self) -> str:
        """The cluster's name in the DCS."""
        return self._text("scope")

    @property
    def data_dir(self) -> str:
        """The data directory."""
        value = self._postgresql.get("data_dir")
        if (
            not isinstance(value, str)
            or not (value.startswith("/") and value.isprintable())
            or value.rstrip("/").count("/") < 2
        ):
            raise RefusedError(
                f"Patroni's configuration says postgresql.data_dir: {value!r}; "
                "expected an absolute path at least two levels deep"
            )
        return value.rstrip("/")

    @property
    def bin_dir(self) -> str:
        """The folder of the server's programs, or empty for those on the path."""
        return str(self._postgresql.get("bin_dir") or "")

    @property
    def superuser(self) -> str:
        """The database superuser that Patroni uses."""
        return str(self._authentication("superuser").get("username") or "postgres")

    @property
    def tags(self) -> Mapping[str, Any]:
        """The member's tags, as the file gives them."""
        return _mapping(self.data.get("tags"))

    @property
    def use_pg_rewind(self) -> bool:
        """Whether the node's own file turns on ``use_pg_rewind``."""
        return self._postgresql.get("use_pg_rewind") is True

    @property
    def clones_with_waldir(self) -> bool:
        """Whether a fresh copy puts ``pg_wal`` elsewhere by itself (``basebackup: waldir``)."""
        return "waldir" in str(self._postgresql.get("basebackup"))

    def rewind_login(self) -> dict[str, str]:
        """Return user, password and TLS settings for ``pg_rewind``, named as libpq's variables.

        Patroni uses the ``rewind`` role from 11 on where it is configured, else the superuser.
        """
        login = self._authentication("rewind") or self._authentication("superuser")
        names = {
            "username": "PGUSER",
            "password": "PGPASSWORD",
            "sslmode": "PGSSLMODE",
            "sslcert": "PGSSLCERT",
            "sslkey": "PGSSLKEY",
            "sslrootcert": "PGSSLROOTCERT",
            "sslcrl": "PGSSLCRL",
            "gssencmode": "PGGSSENCMODE",
            "channel_binding": "PGCHANNELBINDING",
        }
        return {variable: str(login[key]) for key, variable in names.items() if login.get(key) is not None}

    def _authentication(self, role: str) -> Mapping[str, Any]:
        return _mapping(_mapping(self._postgresql.get("authentication")).get(role))

    def _text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str | int) or value == "":
            raise RefusedError(f"Patroni's configuration says {key}: {value!r}; expected a name")
        return str(value)


def parse_node_config(texts: list[str], *, where: str) -> NodeConfig:
    """Read a node's Patroni configuration as Patroni does (YAML 1.1, later files patch earlier ones).

    :param texts: the file's text, or those of a folder's files in order of their names.
    :param where: node and path, for the error's sentence.
    :raises RefusedError: when there is none, or it cannot be parsed.
    """
    merged: dict[str, Any] = {}
    if not texts:
        raise RefusedError(f"{where}: no Patroni configuration found; expected a YAML file or a folder of them")
    for text in texts:
        _patch(merged, _load(text, where=where))
    if not merged:
        raise RefusedError(f"{where}: Patroni's configuration is empty")
    return NodeConfig(merged)


def hold_settings(
    local: NodeConfig, dynamic: Mapping[str, Any], mechanism: HoldMechanism
) -> dict[tuple[str, ...], Any]:
    """Return the keys that hold a member, each where Patroni lets it take effect (hazards H1, H6, H8, H15).

    :param local: the node's own configuration.
    :param dynamic: the cluster's dynamic configuration, from ``GET /config``.
    """
    settings: dict[tuple[str, ...], Any] = {("tags", tag): value for tag, value in HOLD_TAGS.items()}
    settings["postgresql", "parameters", "hot_standby_feedback"] = "off"
    if mechanism is HoldMechanism.APPLY_DELAY:
        ours = _mapping(local.data.get("postgresql"))
        theirs = _mapping(dynamic.get("postgresql"))
        parameters = {**_mapping(theirs.get("parameters")), **_mapping(ours.get("parameters"))}
        if any(str(name).lower() in _RECOVERY_PARAMETERS for name in parameters):
            settings["postgresql", "parameters", "recovery_min_apply_delay"] = APPLY_DELAY
        else:
            effective = ours["recovery_conf"] if "recovery_conf" in ours else theirs.get("recovery_conf")
            for name, value in {**_mapping(effective), "recovery_min_apply_delay": APPLY_DELAY}.items():
                settings["postgresql", "recovery_conf", str(name)] = value
    return settings


def display_settings(tags: Mapping[str, str]) -> dict[tuple[str, ...], Any]:
    """Return the keys of the display tags."""
    return {("tags", DISPLAY_PREFIX + name): value for name, value in tags.items()}


def edit(text: str, settings: Mapping[tuple[str, ...], Any], *, where: str) -> str:
    """Return a configuration's text with the given keys set; comments, order and quoting stay.

    :raises RefusedError: when the file cannot be parsed, or the edit would change anything else.
    """
    round_trip = YAML()
    round_trip.preserve_quotes = True
    round_trip.width = 1_000_000
    start = _STARTS.match(text)
    head = start[0] if start else ""  # ruamel.yaml drops it
    mapping, offset = _indentation(text)
    round_trip.indent(mapping=mapping, sequence=offset + 2, offset=offset)
    try:
        document = round_trip.load(text[len(head) :]) if text.strip() else {}
        wanted = _load(text, where=where)
        for path, value in settings.items():
            # Always quoted: a plain off, no or date is another value in YAML 1.1, which Patroni reads (H15).
            _set(document, path, DoubleQuotedScalarString(value) if isinstance(value, str) else value)
            _set(wanted, path, value)
        out = io.StringIO()
        out.write(head)
        round_trip.dump(document, out)
        after = yaml.safe_load(out.getvalue())
    except (RuamelError, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedError(
            f"{where}: cannot be edited safely ({_first_line(error)}); mend it, nothing was changed"
        ) from None
    if after != wanted:
        raise RefusedError(
            f"{where}: editing it would change settings other than the hold's (a repeated key, or a value that "
            "YAML 1.1 and 1.2 read differently); quote such values, nothing was changed"
        )
    return out.getvalue()


def without_hold(text: str, settings: Mapping[tuple[str, ...], Any], *, original: str, where: str) -> str:
    """Return a configuration that somebody edited during the hold, less the hold's own keys.

    A key is taken out only while it still has the value that the hold gave it; the value that the owner
    had given it before comes back.

    :param original: the text before the hold.
    :raises RefusedError: when either cannot be parsed or edited.
    """
    current, before = _load(text, where=where), _load(original, where=where)
    ours = {path: _get(before, path) for path, value in settings.items() if _get(current, path) == value}
    for name in _mapping(current.get("tags")):
        if str(name).startswith(DISPLAY_PREFIX):
            ours["tags", str(name)] = None
    for path, value in ours.items():
        _set(current, path, value)
    # A mapping that the hold made goes with its last key: an empty recovery_conf hides the dynamic one (H15).
    parents = {path[:depth] for path in ours for depth in range(1, len(path))}
    for parent in sorted(parents, key=len, reverse=True):
        if _get(current, parent) == {} and parent[-1] not in _mapping(_get(before, parent[:-1])):
            ours[parent] = None
            _set(current, parent, None)
    return edit(text, ours, where=where)


def _load(text: str, *, where: str) -> dict[str, Any]:
    """Read a file as Patroni does, in YAML 1.1; an empty one is an empty mapping."""
    try:
        # Nothing shared in it: an edit that shows elsewhere too, through an anchor, must be noticed.
        data = _unshared(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RefusedError(f"{where}: not valid YAML ({_first_line(error)}); mend it, nothing was changed") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RefusedError(f"{where}: found a {type(data).__name__}, expected a mapping of Patroni's settings")
    return data


def _indentation(text: str) -> tuple[int, int]:
    """Return by how much a file indents mappings, and the dashes of lists below their key."""
    mapping = offset = None
    above = ""
    for line in text.splitlines():
        content = line.lstrip(" ")
        if not content or content.startswith("#"):
            continue
        deeper = len(line) - len(content) - (len(above) - len(above.lstrip(" ")))
        if above.split(" #")[0].rstrip().endswith(":") and not above.lstrip().startswith("-"):
            if content.startswith("- "):
                offset = deeper if offset is None else offset
            elif deeper > 0:
                mapping = deeper if mapping is None else mapping
        above = line
    return mapping or 2, 2 if offset is None else max(offset, 0)


def _unshared(value: Any) -> Any:
    """Return a copy in which no mapping or list is there twice."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _patch(target: dict[str, Any], data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _patch(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def _get(data: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _set(data: Any, path: tuple[str, ...], value: Any) -> None:
    if value is None and not isinstance(_get(data, path[:-1]), Mapping):
        return
    for key in path[:-1]:
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
    if value is None:
        data.pop(path[-1], None)
    else:
        data[path[-1]] = value


def _first_line(error: BaseException) -> str:
    """Name the place of a YAML mistake and nothing of the file's text, which holds passwords."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or type(error).__name__)
    # What the parsers quote comes from the file.
    kind = "a key is there twice" if isinstance(error, DuplicateKeyError) else re.split("['\"]", problem)[0].strip()
    return f"{kind}, line {mark.line + 1}" if mark is not None else kind
