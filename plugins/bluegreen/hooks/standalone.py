"""The held member's server while it runs outside Patroni, shut to the world (hazards H3, H9 and H12)."""

from __future__ import annotations

import time

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.promotion import begun, promoted
from bluegreen.recovery import standalone
from bluegreen.recovery.history import Branch, is_history_name
from bluegreen.recovery.versions import ServerVersion

RECOVERY_SECONDS = 3600


class Standalone:
    """The held member's server while it runs outside Patroni.

    :param node: its node.
    :param state: its configuration and what lies beside it.
    :param checkpoint: the checkpoint's journal.
    """

    def __init__(self, node: NodeHook, state: NodeState, checkpoint: Checkpoint) -> None:
        self.node = node
        self.state = state
        self.checkpoint = checkpoint
        self.version = ServerVersion(checkpoint.server_version_num)
        self.data_dir = state.config.data_dir

    @property
    def originals(self) -> dict[str, str]:
        """The server's files that the recovery changes: name of the saved copy to path."""
        files = {
            "pg_hba.conf": self._server_file("hba_file"),
            "pg_ident.conf": self._server_file("ident_file"),
            "postgresql.auto.conf": f"{self.data_dir}/postgresql.auto.conf",
        }
        if self.version.has_recovery_conf:
            files["recovery.conf"] = f"{self.data_dir}/recovery.conf"
        return files

    def _server_file(self, name: str) -> str:
        path = self.checkpoint.server_files.get(name, "")
        if not path.startswith("/"):
            raise RefusedError(f"the journal of {self.checkpoint.id} gives {name} as {path!r}; expected a path")
        return path

    def prepare(self, found: DataDirectory, histories: dict[str, str]) -> None:
        """Save the server's files, seed the histories, write the files of the recovery."""
        if self.checkpoint.xid is None or self.checkpoint.timeline is None:
            raise RefusedError(f"checkpoint {self.checkpoint.id} has no mark")
        config = self.state.config
        settings = standalone.recovery_settings(
            xid=self.checkpoint.xid,
            timeline=self.checkpoint.timeline,
            version=self.version,
            restore_command=self._restore_command(found),
        )
        hba, ident = standalone.closed_hba(config.superuser, self.node.commands.os_user)
        originals = self.originals
        files = {originals["pg_hba.conf"]: hba, originals["pg_ident.conf"]: ident}
        auto_conf = found.file("postgresql.auto.conf")
        if self.version.has_recovery_conf:
            files[originals["recovery.conf"]] = standalone.recovery_conf(settings)
            settings = standalone.alone_until_proven(self.version)
        files[originals["postgresql.auto.conf"]] = standalone.with_settings(auto_conf, settings)
        self.node.done(
            shell.prepare_recovery(
                config=self.node.config_path,
                data_dir=self.data_dir,
                wal_dir=f"{self.data_dir}/{self.version.wal_directory}",
                originals={
                    **originals,
                    **({} if self.version.has_recovery_conf else {"standby.signal": f"{self.data_dir}/standby.signal"}),
                },
                files=files,
                histories={name: text for name, text in histories.items() if is_history_name(name)},
                signals=not self.version.has_recovery_conf,
            ),
            "writing the files of the recovery",
        )

    def shut(self, found: DataDirectory) -> None:
        """Shut a promoted server again that an earlier try may have opened: the proof goes over the socket."""
        hba, ident = standalone.closed_hba(self.state.config.superuser, self.node.commands.os_user)
        originals = self.originals
        files = {originals["pg_hba.conf"]: hba, originals["pg_ident.conf"]: ident}
        self.node.done(shell.replace_files(files), "shutting the server to clients again")
        if found.server_processes:
            self.node.done(shell.reload_server(self.data_dir, found.bin_dir), "reloading the server")

    def _restore_command(self, found: DataDirectory) -> str:
        """Return the node's own restore command: it also finds timelines that only the archive knows."""
        settings = dict(self.checkpoint.hold.settings) if self.checkpoint.hold else {}
        for path in (("postgresql", "recovery_conf", "restore_command"),):
            if settings.get(path):
                return str(settings[path])
        dynamic = self.checkpoint.dynamic_config.get("postgresql") or {}
        local = self.state.config.data.get("postgresql") or {}
        for part in (local, dynamic):
            parameters = part.get("parameters") or {}
            if parameters.get("restore_command"):
                return str(parameters["restore_command"])
        return ""

    @property
    def log_path(self) -> str:
        """Where the server writes while it runs outside Patroni."""
        return self.node.config_path + shell.LOG

    def start(self, found: DataDirectory) -> None:
        """Start the server with the options that Patroni gave it."""
        options = standalone.start_options(found.file("postmaster.opts"))
        result = self.node.run(
            shell.start_server(self.data_dir, found.bin_dir, options, log=self.log_path, seconds=30),
            timeout_seconds=60,
        )
        if result.status:
            self.node.log.warning("pg_ctl start ended with status %s; looking at the server itself", result.status)

    def sql(self, found: DataDirectory, statement: str) -> str:
        """Ask the server over its local socket.

        :raises FailedForNowError: when it does not answer.
        """
        sockets = self.checkpoint.server_files.get("unix_socket_directories", "").split(",")[0].strip().strip('"')
        port = self.checkpoint.server_files.get("port", "")
        result = self.node.run(
            shell.psql(found.bin_dir, sockets, port, self.state.config.superuser, statement), timeout_seconds=70
        )
        if result.status:
            raise FailedForNowError(f"{self.node.where}: psql over {sockets}: {' '.join(result.error.split())[:300]}")
        return result.output.strip()

    def wait_promoted(self, found: DataDirectory) -> tuple[int, Branch]:
        """Wait for the end of the recovery and prove by the history file that it ended at the mark.

        :raises FailedForNowError: when the server died before, with the last line of its log, or its answer is none.
        :raises OutcomeUnknownError: when the answer is too large or does not end.
        :raises RefusedError: when it was promoted elsewhere: it must not be opened.
        """
        deadline, last = time.monotonic() + RECOVERY_SECONDS, ""
        question = "select pg_is_in_recovery()"
        while True:
            try:
                answer = self.sql(found, question)
            except FailedForNowError as error:
                # a server that starts lets nobody in, however long it has to replay until it is consistent
                if str(error) != last:
                    last = str(error)
                    self.node.log.info("%s", error)
            else:
                if answer == "f":
                    break
                if answer != "t":
                    raise FailedForNowError(
                        f"{self.node.where}: found {answer[:80]!r} as the answer to {question}, expected t or f"
                    )
            if not self.node.data_directory(self.state.config).server_processes:
                raise FailedForNowError(
                    f"{self.node.where}: the server ended before its promotion at the mark; it said: {self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise FailedForNowError(
                    f"{self.node.where}: not promoted within {RECOVERY_SECONDS} s, as far as is known"
                    + (f"; the last answer was: {last}" if last else "")
                )
            time.sleep(0.1)
        found = self.node.data_directory(self.state.config)
        branch = promoted(self.checkpoint, found)
        if branch is None:
            on = "is not on the timeline that" if begun(self.checkpoint, found) else "has no timeline that"
            raise RefusedError(
                f"{self.node.where}: the server takes writes, but it {on} began 'after transaction "
                f"{self.checkpoint.xid}'; it holds another state than the one asked for. It is still closed to "
                "clients. Do not start Patroni on it"
            )
        return branch

    def _log_tail(self) -> str:
        result = self.node.run(shell.server_log(self.data_dir, self.log_path))
        # that a standby's own processes were told to end belongs to its stop before
        wanted = [
            line
            for line in result.output.splitlines()
            if ("FATAL" in line or "PANIC" in line) and "due to administrator command" not in line
        ]
        return " ".join((wanted or result.output.splitlines() or ["nothing"])[-1].split())[:400]

    def open(self, found: DataDirectory) -> None:
        """Put the server's own files back and have it read them: clients are let in again."""
        self.node.done(
            shell.restore_saved(
                config=self.node.config_path, data_dir=self.data_dir, originals=self._to_put_back(), signals="none"
            ),
            "putting the server's files back",
        )
        if found.server_processes:
            self.node.done(shell.reload_server(self.data_dir, found.bin_dir), "reloading the server")

    def _to_put_back(self) -> dict[str, str]:
        # After the promotion there is no recovery.conf; the server renamed it itself.
        return {name: path for name, path in self.originals.items() if name != "recovery.conf"}

    def stop_unpromoted(self) -> None:
        """Stop the server, of which it is proven that it was not promoted."""
        found = self.node.data_directory(self.state.config)
        if found.server_processes:
            self.node.done(
                shell.stop_server(self.data_dir, found.bin_dir, mode="fast", seconds=60),
                "stopping the server that runs outside Patroni",
                timeout_seconds=90,
            )

    def close_again(self) -> None:
        """Make the stopped server the held standby that it was."""
        self.node.done(
            shell.restore_saved(
                config=self.node.config_path, data_dir=self.data_dir, originals=self.originals, signals="standby"
            ),
            "putting the standby's files back",
        )
        self.node.done(shell.remove_files(self.node.config_path + shell.SAVED), "removing the saved files")
