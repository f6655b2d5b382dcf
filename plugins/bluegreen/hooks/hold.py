"""Editing a held node's Patroni configuration, and reading back whether the edit took effect (H1, H15)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Hold
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import NodeHook, NodeState
from bluegreen.hooks.patroni import PatroniHook
from bluegreen.hooks.postgres import MemberSql
from bluegreen.recovery.node_config import APPLY_DELAY, HOLD_TAGS, edit, without_hold
from bluegreen.recovery.versions import HoldMechanism

EDITED_MEANWHILE = "was edited during the hold: only the hold's own keys were taken out, the rest was left"

Settings = Mapping[tuple[str, ...], Any]
log = logging.getLogger(__name__)


def sha256(text: str) -> str:
    """Return the sum by which an edit by somebody else is noticed."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def edited(node: NodeHook, state: NodeState, settings: Settings) -> tuple[str, str, str]:
    """Return path, text before and text after an edit of the node's configuration.

    The edit always starts from the text before any hold, so that doing it again gives the same.

    :raises RefusedError: when the file cannot be edited safely.
    """
    where = f"{node.where}: {node.config_path}"
    if state.folder:
        return f"{node.config_path}/{shell.HOLD_FILE}", "", edit("", settings, where=where)
    before = state.original if state.original is not None else state.files[""]
    return node.config_path, before, edit(before, settings, where=where)


def write_hold(node: NodeHook, state: NodeState, settings: Settings) -> None:
    """Write the hold's settings into the node's configuration, keeping its original beside it."""
    path, _, after = edited(node, state, settings)
    keep = "" if state.folder else node.config_path
    node.done(shell.replace_files({path: after}, keep_original_of=keep), "editing Patroni's configuration")


def clean_text(node: NodeHook, state: NodeState, hold: Hold) -> tuple[str | None, str]:
    """Return the configuration without the hold, and a warning where somebody edited it meanwhile.

    :return: None as text when the kept original can go back byte for byte, or nothing has to change.
    """
    if state.folder:
        return None, ""
    current = state.files[""]
    if sha256(current) == hold.original_sha256:
        return None, ""
    if state.original is not None and sha256(current) == hold.held_sha256:
        return None, ""
    where = f"{node.where}: {node.config_path}"
    settings = dict(hold.settings)
    text = without_hold(current, settings, original=state.original or "", where=where)
    return text, f"{where} {EDITED_MEANWHILE}"


def check_in_effect(patroni: PatroniHook, sql: MemberSql, api_url: str, mechanism: HoldMechanism) -> None:
    """Read every value of the hold back from the running member.

    :raises FailedForNowError: while one is not in effect yet.
    """
    row = sql.row("hold_settings")
    wanted: dict[str, object] = {"hot_standby_feedback": "off"}
    if mechanism is HoldMechanism.APPLY_DELAY:
        wanted["recovery_min_apply_delay"] = APPLY_DELAY
    else:
        wanted["replay_paused"] = True
    for name, value in wanted.items():
        if row[name] != value:
            raise FailedForNowError(
                f"{sql.where}: {name} is {row[name]!r} after the reload, expected {value!r}. Something overrides "
                "the node's Patroni configuration (a permanent logical slot forces hot_standby_feedback on)"
            )
    check_tags(patroni, api_url, {name: value for name, value in HOLD_TAGS.items()})


def check_tags(patroni: PatroniHook, api_url: str, wanted: Mapping[str, object]) -> None:
    """Check that Patroni itself has the tags; a tag that is false may be left out.

    :raises FailedForNowError: while one is not so.
    """
    tags = patroni.member_status(api_url).get("tags")
    tags = tags if isinstance(tags, dict) else {}
    for name, value in wanted.items():
        if (tags.get(name) or False) != value:
            raise FailedForNowError(f"{api_url}: Patroni has the tag {name} as {tags.get(name)!r}, expected {value!r}")


def check_released(hook: ClusterHook, checkpoint: Checkpoint) -> None:
    """Read back that nothing of the hold is in effect on the held member.

    :raises FailedForNowError: while something is.
    """
    if checkpoint.hold is None:
        return
    address = checkpoint.members[checkpoint.held]
    row = hook.sql_of(checkpoint, checkpoint.held).row("hold_settings")
    if checkpoint.hold.mechanism is HoldMechanism.APPLY_DELAY:
        if row["recovery_min_apply_delay"] == APPLY_DELAY:
            raise FailedForNowError(f"{checkpoint.held}: recovery_min_apply_delay is still {APPLY_DELAY}")
    elif row["replay_paused"]:  # unknown where it is no standby any more: then nothing is paused
        raise FailedForNowError(f"{checkpoint.held}: replay is still paused")
    tags = hook.patroni.member_status(address.api_url).get("tags")
    left = [name for name in tags if str(name).startswith("bluegreen_")] if isinstance(tags, dict) else []
    if left:
        raise FailedForNowError(f"{checkpoint.held}: Patroni still has the tags {', '.join(sorted(left))}")


def require_in_place(node: NodeHook, state: NodeState) -> None:
    """Refuse when the node's configuration was moved aside by a rollback.

    :raises RefusedError: with what to do.
    """
    if state.aside:
        raise RefusedError(
            f"{node.where}: {node.config_path} was moved aside by a rollback; expected it in place. "
            "Finish that rollback: run bluegreen_rollback again"
        )
