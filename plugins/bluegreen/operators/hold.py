"""Hold a standby's replay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Hold, MemberAddress, Phase, check_id, check_label, expires_at
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey, ssh_host
from bluegreen.hooks.hold import check_in_effect, check_tags, edited, require_in_place, sha256, write_hold
from bluegreen.hooks.node import NodeHook
from bluegreen.hooks.proof import prove_held
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, deployment_of, owner_of, survey_as_owner
from bluegreen.recovery.node_config import display_settings, hold_settings
from bluegreen.recovery.versions import HoldMechanism, ServerVersion
from bluegreen.runbook import Place, runbook
from bluegreen.topology import Topology, check_standby

if TYPE_CHECKING:
    from airflow.sdk import Context

TAKES_EFFECT_SECONDS = 40


class HoldStandbyOperator(BluegreenOperator):
    """Hold one standby: it goes on receiving WAL and applies no further commit.

    The journal is written first, on every member, so that a hold is never left behind untold. The edit
    is in the node's own Patroni YAML; each value is read back from the running member.

    Example::

        hold = HoldStandbyOperator(
            task_id="hold", cluster="orders", standby="n3", checkpoint_id="bg_release_12"
        )

    :param standby: the member to hold (templated).
    :param checkpoint_id: the id of the checkpoint that begins here (templated).
    :param checkpoint_label: a text for people (templated).
    :raises RefusedError: when the member cannot be held, or another checkpoint is.
    """

    template_fields: Sequence[str] = (
        *BluegreenOperator.template_fields,
        "standby",
        "checkpoint_id",
        "checkpoint_label",
    )

    def __init__(self, *, standby: str, checkpoint_id: str, checkpoint_label: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.standby = standby
        self.checkpoint_id = checkpoint_id
        self.checkpoint_label = checkpoint_label

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Write the journal, edit, reload, read back."""
        survey = survey_as_owner(hook, context, patroni_must_answer=True)
        if survey.topology is None:
            raise FailedForNowError("no Patroni answers")
        survey.require(member.name for member in survey.topology.members)
        existing = survey.known_checkpoint()
        if existing is not None and (existing.id, existing.held) != (self.checkpoint_id, self.standby):
            raise RefusedError(
                f"{hook.cluster.name} already holds checkpoint {existing.id} on {existing.held}; expected none"
            )
        member = survey.topology.member(self.standby)
        if existing is None:
            check_standby(survey.topology, self.standby)
        node, state = hook.nodes[self.standby], survey.states[self.standby]
        require_in_place(node, state)
        sql = hook.sql(member.name, member.host, member.port)
        version = ServerVersion(sql.version)
        if existing is None:
            dynamic = hook.patroni.dynamic_config(survey.topology.leader.api_url)
            settings = hold_settings(state.config, dynamic, version.hold_mechanism)
            _, before, after = edited(node, state, settings)
            hold = Hold(
                mechanism=version.hold_mechanism,
                settings=list(settings.items()),
                original_sha256=sha256(before),
                held_sha256=sha256(after),
            )
            checkpoint = self._begin(hook, survey, survey.topology, context, dynamic, hold)
            hook.write_journal(checkpoint, needed=checkpoint.members)
        else:
            checkpoint = existing
        if checkpoint.hold is None:
            raise RefusedError(f"the journal of checkpoint {checkpoint.id} has no hold in it")
        if checkpoint.phase is Phase.HOLDING:
            write_hold(node, state, dict(checkpoint.hold.settings))
        if checkpoint.hold.mechanism is HoldMechanism.REPLAY_PAUSE:
            sql.rows("pause_replay")
        mechanism = checkpoint.hold.mechanism
        hook.patroni.reload(member.api_url)
        wait_until(lambda: check_in_effect(hook.patroni, sql, member.api_url, mechanism), seconds=TAKES_EFFECT_SECONDS)
        self.log.info("%s is held by %s", self.standby, mechanism.value)
        return {"checkpoint": checkpoint.public(), "mechanism": mechanism.value}

    def _begin(
        self,
        hook: ClusterHook,
        survey: Survey,
        topology: Topology,
        context: Context,
        dynamic: dict[str, Any],
        hold: Hold,
    ) -> Checkpoint:
        leader = topology.leader
        primary = hook.sql(leader.name, leader.host, leader.port)
        identity = primary.row("identity")
        standby = topology.member(self.standby)
        rows = hook.sql(standby.name, standby.host, standby.port).rows("settings")
        files = ("hba_file", "ident_file", "config_file", "unix_socket_directories", "port")
        owner = owner_of(context, "checkpoint")
        return Checkpoint(
            id=check_id(self.checkpoint_id),
            cluster=hook.cluster.name,
            scope=survey.states[self.standby].config.scope,
            label=check_label(self.checkpoint_label or ""),
            phase=Phase.HOLDING,
            held=self.standby,
            leader=leader.name,
            members={
                member.name: MemberAddress(
                    host=member.host,
                    port=member.port,
                    api_url=member.api_url,
                    ssh_host=ssh_host(hook.cluster, member.name, member.host),
                )
                for member in topology.members
            },
            server_version_num=int(identity["server_version_num"]),
            system_identifier=str(identity["system_identifier"]),
            taken_by=owner,
            deployment=deployment_of(context),
            dynamic_config=dynamic,
            hold=hold,
            server_files={str(row["name"]): str(row["value"]) for row in rows if row["name"] in files},
            expires_at=expires_at(datetime.now(UTC), hook.cluster.expires_after_seconds),
        )


class RecordCheckpointOperator(BluegreenOperator):
    """Publish a proven mark: display tags on the held member, and the journal says ``held``.

    Example::

        record = RecordCheckpointOperator(task_id="record", cluster="orders")

    :raises RefusedError: when there is no checkpoint with a mark.
    :raises CheckpointLostError: when the proof fails at the end.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Write the tags, reload, read them back, prove once more, write the journal."""
        survey = survey_as_owner(hook, context, patroni_must_answer=True)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None or checkpoint.hold is None or checkpoint.xid is None:
            raise RefusedError(f"{hook.cluster.name} has no checkpoint with a mark to record; take one first")
        survey.require(checkpoint.members)
        node, state = hook.nodes[checkpoint.held], survey.states[checkpoint.held]
        tags = checkpoint.display_tags()
        if checkpoint.phase is Phase.HOLDING:
            settings = dict(checkpoint.hold.settings) | display_settings(tags)
            _, _, after = edited(node, state, settings)
            hold = checkpoint.hold.model_copy(update={"held_sha256": sha256(after)})
            checkpoint = checkpoint.advanced(Phase.HELD, hold=hold)
            write_hold(node, state, settings)
        address = checkpoint.members[checkpoint.held]
        hook.patroni.reload(address.api_url)
        wait_until(
            lambda: check_tags(
                hook.patroni, address.api_url, {"bluegreen_" + name: value for name, value in tags.items() if value}
            ),
            seconds=TAKES_EFFECT_SECONDS,
        )
        prove_held(hook, checkpoint, files=True)
        text = self._write_runbook(hook, survey, checkpoint)
        hook.write_journal(checkpoint, needed=checkpoint.members)
        return {
            "checkpoint": checkpoint.public(),
            "journal": node.config_path + shell.JOURNAL,
            "runbook_path": node.config_path + shell.RUNBOOK,
            "runbook": text,
        }

    def _write_runbook(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> str:
        def write(node: NodeHook) -> None:
            node.done(shell.replace_files({node.config_path + shell.RUNBOOK: text}), "writing the runbook")

        def bin_dir(node: NodeHook) -> str:
            return node.data_directory(survey.states[node.member].config).bin_dir

        places = {}
        for name, found in hook.on_each(checkpoint.members, bin_dir).items():
            node = hook.nodes[name]
            places[name] = Place(
                ssh_host=node.address,
                config=node.config_path,
                data_dir=survey.states[name].config.data_dir,
                bin_dir=found,
                os_user=node.commands.os_user,
                start=node.commands.start,
                stop=node.commands.stop,
                status=node.commands.status,
                patronictl=node.commands.patronictl,
            )
        text = runbook(checkpoint, places, superuser=survey.states[checkpoint.held].config.superuser)
        hook.on_each(checkpoint.members, write)
        return text
