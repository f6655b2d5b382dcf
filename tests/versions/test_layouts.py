"""How people lay out their clusters: each is held and resumed, held and rolled back, and is afterwards what it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lab.cluster import Lab
from tests.cluster.scene import GOOD_MIGRATION, Scene, wait_for
from tests.cluster.verdict import Contents, contents, dcs
from tests.versions.people import (
    configure,
    edit_yaml,
    move_behind_link,
    owned,
    reload,
    settled,
    while_down,
)
from tests.versions.verdict import verdict


def resumed(scene: Scene, **conf: str) -> None:
    """The good path."""
    lab = scene.lab
    scene.checkpoint(**conf)
    new = scene.deploy(GOOD_MIGRATION)
    scene.must("resume", checkpoint=scene.record["id"])
    verdict(lab, before=scene.fresh, rows=new, leader=scene.record["leader"], timeline=scene.timeline)


def rolled_back(scene: Scene, *, rejoin: str = "auto", **conf: str) -> dict[str, str]:
    """The bad path; return how each member came back."""
    lab = scene.lab
    scene.checkpoint(**conf)
    held = scene.held
    scene.deploy_badly()
    report = scene.rollback(rejoin=rejoin)
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, timeline=scene.timeline + 1, after_xid=scene.xid)
    return {name: one.get("rejoined_by", "") for name, one in report["members"].items()}


# A standby that its owner keeps out of elections


def kept_out(scene: Scene) -> str:
    """Let the owner of n3 say that it may never lead; return its name."""
    edit_yaml(scene.lab, "n3", "nofailover: false", "nofailover: true")
    reload(scene.lab, "n3")
    wait_for("the tag in the DCS", lambda: "nofailover" in dcs(scene.lab).get("members/n3", ""))
    settled(scene)
    return "n3"


def test_a_standby_that_may_never_lead_is_preferred_and_stays_so(scene: Scene) -> None:
    name = kept_out(scene)
    resumed(scene)
    assert scene.held == name, "holding it costs no failover candidate"


def test_a_standby_that_may_never_lead_leads_after_a_rollback_and_its_tag_is_there_again(scene: Scene) -> None:
    name = kept_out(scene)
    rolled_back(scene)
    assert scene.held == scene.leader == name
    assert "nofailover: true" in scene.lab.nodes[name].patroni_config.read_text()


def test_the_log_of_a_leader_without_a_collector_stays_until_it_is_restarted(scene: Scene) -> None:
    """The server that recovers writes to our file, as whoever started it left its standard error."""
    lab = scene.lab
    while_down(lab, lambda name: edit_yaml(lab, name, 'logging_collector: "on"', 'logging_collector: "off"'))
    settled(scene)
    scene.checkpoint()
    held = scene.held
    scene.deploy_badly()

    warnings = scene.rollback()["warnings"]

    path = lab.nodes[held].patroni_config
    log = path.with_name(f"{path.name}.bluegreen-log")
    assert [line for line in warnings if str(log) in line and "patronictl restart" in line], warnings
    assert log.samefile(f"/proc/{lab.postmaster(held)}/fd/2")
    lab.patronictl("restart", lab.name, held, "--force").check_returncode()
    wait_for("it is restarted", lambda: not log.samefile(f"/proc/{lab.postmaster(held)}/fd/2"))
    log.unlink()
    lab.wait_healthy(60)
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)


# Permanent slots


SLOTS = {
    "kept_physical": {"type": "physical"},
    "kept_logical": {"type": "logical", "database": "app", "plugin": "pgoutput"},
}


def with_slots(scene: Scene, *names: str) -> list[str]:
    """Make slots permanent; return their names."""
    lab = scene.lab
    if "kept_logical" in names:
        configure(lab, {"postgresql": {"parameters": {"wal_level": "logical"}}})
        wait_for(
            "the restart is pending",
            lambda: all((lab.patroni(name) or {}).get("pending_restart") for name in lab.names),
        )
        for name in lab.names:
            lab.patronictl("restart", lab.name, name, "--force").check_returncode()
    configure(lab, {"slots": {name: SLOTS[name] for name in names}})
    wait_for("the slots", lambda: slots(lab, lab.wait_leader()) >= set(names))
    settled(scene)
    return list(names)


def slots(lab: Lab, name: str) -> set[str]:
    """The slots on a member."""
    return {slot for (slot,) in lab.sql(name, "select slot_name from pg_replication_slots", database="postgres")}


@pytest.mark.parametrize("names", [("kept_physical",), ("kept_physical", "kept_logical")], ids=["physical", "logical"])
def test_permanent_slots_are_there_after_a_resume(scene: Scene, names: tuple[str, ...]) -> None:
    with_slots(scene, *names)
    resumed(scene)
    assert slots(scene.lab, scene.leader) >= set(names)


@pytest.mark.parametrize("names", [("kept_physical",), ("kept_physical", "kept_logical")], ids=["physical", "logical"])
def test_permanent_slots_are_made_again_after_a_rollback(scene: Scene, names: tuple[str, ...]) -> None:
    with_slots(scene, *names)
    rolled_back(scene)
    wait_for("the slots on the new leader", lambda: slots(scene.lab, scene.leader) >= set(names))


# Where files are


def wal_elsewhere(scene: Scene) -> None:
    """Put pg_wal behind a link, on every member."""

    def change(name: str) -> None:
        node = scene.lab.nodes[name]
        move_behind_link(node.data_dir / "pg_wal", node.data_dir.parent / "wal")

    while_down(scene.lab, change)
    settled(scene)


def test_a_rewind_leaves_pg_wal_behind_its_link(scene: Scene) -> None:
    wal_elsewhere(scene)
    rolled_back(scene, rejoin="rewind")
    for node in scene.lab.nodes.values():
        assert (node.data_dir / "pg_wal").is_symlink()


def test_a_fresh_copy_says_that_pg_wal_has_left_its_link(scene: Scene) -> None:
    wal_elsewhere(scene)
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    report = scene.rollback(rejoin="reclone")
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    for name in set(lab.names) - {scene.held}:
        assert any(name in line and "link" in line for line in report["warnings"]), report["warnings"]
        assert list((lab.nodes[name].data_dir.parent / "wal").iterdir()) == []


def test_a_fresh_copy_puts_pg_wal_behind_its_link_where_patroni_is_told_to(scene: Scene) -> None:
    for name, node in scene.lab.nodes.items():
        edit_yaml(
            scene.lab,
            name,
            "  - checkpoint: fast",
            f"  - waldir: {node.data_dir.parent}/wal\n  - checkpoint: fast",
        )
    wal_elsewhere(scene)
    rolled_back(scene, rejoin="reclone")
    for node in scene.lab.nodes.values():
        assert (node.data_dir / "pg_wal").is_symlink()


def with_tablespace(scene: Scene) -> None:
    """Make a tablespace that lies outside the data directory, at another place on each member.

    All members share one machine: the tablespace is made inside pg_tblspc and moved behind a link afterwards.
    """
    lab = scene.lab
    leader = lab.wait_leader()
    configure(lab, {"postgresql": {"parameters": {"allow_in_place_tablespaces": "on"}}})
    wait_for(
        "the parameter",
        lambda: all(lab.value(name, "show allow_in_place_tablespaces") == "on" for name in lab.names),
    )
    lab.sql(leader, "create tablespace fast location ''")
    lab.sql(leader, "grant create on tablespace fast to release")
    lab.sql(leader, "create table measured tablespace fast as select generate_series(1, 500) as n", user="release")
    wait_for("the rows everywhere", lambda: all(_measured(lab, name) for name in lab.names))
    places = {name: node.data_dir.parent / "fast" for name, node in lab.nodes.items()}
    for name in lab.names:
        mapping = "".join(
            f"  - tablespace-mapping: {place}={places[name]}\n" for place in places.values() if place != places[name]
        )
        edit_yaml(lab, name, "  - checkpoint: fast", f"{mapping}  - checkpoint: fast")

    def change(name: str) -> None:
        (tablespace,) = (lab.nodes[name].data_dir / "pg_tblspc").iterdir()
        move_behind_link(tablespace, places[name])

    while_down(lab, change)
    settled(scene)


def _measured(lab: Lab, name: str) -> bool:
    return bool(lab.value(name, "select to_regclass('measured') is not null"))


@pytest.mark.parametrize("rejoin", ["rewind", "reclone"])
def test_a_rollback_takes_tablespaces_along(scene: Scene, rejoin: str) -> None:
    with_tablespace(scene)
    lab = scene.lab
    scene.checkpoint()
    lab.sql(scene.leader, "update measured set n = 0", user="release")
    scene.deploy_badly()
    scene.rollback(rejoin=rejoin)
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    for node in lab.nodes.values():
        (link,) = (node.data_dir / "pg_tblspc").iterdir()
        assert link.resolve() == (node.data_dir.parent / "fast").resolve()


def split(lab: Lab, name: str) -> None:
    """Make a member's Patroni configuration a folder of three files."""
    path = lab.nodes[name].patroni_config
    whole = path.read_text()
    draft = path.with_name("split")
    draft.mkdir()
    middle, end = whole.index("postgresql:\n  listen"), whole.index("tags:\n")
    for file, text in {
        "10-dcs.yml": whole[:middle],
        "20-postgresql.yaml": whole[middle:end],
        "30-tags.yml": whole[end:],
    }.items():
        (draft / file).write_text(text)
        (draft / file).chmod(0o600)
    draft.chmod(0o700)
    owned(draft, like=path)
    path.unlink()
    draft.rename(path)


@pytest.mark.parametrize("how", ["resumed", "rolled back"])
def test_a_patroni_configuration_in_a_folder_of_files(scene: Scene, how: str) -> None:
    lab = scene.lab
    while_down(lab, lambda name: split(lab, name))
    settled(scene)
    if how == "resumed":
        resumed(scene)
    else:
        rolled_back(scene)
    for node in lab.nodes.values():
        assert sorted(path.name for path in node.patroni_config.iterdir()) == [
            "10-dcs.yml",
            "20-postgresql.yaml",
            "30-tags.yml",
        ]


CONFIGURATION = ("postgresql.conf", "postgresql.base.conf", "pg_hba.conf", "pg_ident.conf")


@pytest.mark.parametrize("rejoin", ["rewind", "reclone"])
def test_configuration_files_outside_the_data_directory(scene: Scene, rejoin: str) -> None:
    """As Debian has it, /etc/postgresql/15/main."""
    lab = scene.lab

    def change(name: str) -> None:
        node = lab.nodes[name]
        etc = node.data_dir.parent / "etc"
        etc.mkdir(mode=0o700)
        for file in CONFIGURATION:
            shutil.move(node.data_dir / file, etc / file)
        owned(etc, like=node.data_dir)
        edit_yaml(lab, name, "  bin_dir:", f"  config_dir: {etc}\n  bin_dir:")

    while_down(lab, change)
    settled(scene)
    before = {name: _hba(lab, name) for name in lab.names}
    assert all(path.endswith("/etc/pg_hba.conf") for path, _ in before.values()), before
    rolled_back(scene, rejoin=rejoin)
    assert {name: _hba(lab, name) for name in lab.names} == before


def _hba(lab: Lab, name: str) -> tuple[str, str]:
    path = str(lab.value(name, "show hba_file", database="postgres"))
    return path, Path(path).read_text()


# A cascading replica


def cascading(scene: Scene) -> None:
    """n3 receives from n2."""
    lab = scene.lab
    edit_yaml(lab, "n3", "tags:\n", "tags:\n  replicatefrom: n2\n")
    reload(lab, "n3")
    query = "select application_name from pg_stat_replication where state = 'streaming'"
    wait_for("n3 streams from n2", lambda: lab.sql("n2", query, database="postgres") == [("n3",)])
    wait_for("the leader sends to n2 only", lambda: lab.sql("n1", query, database="postgres") == [("n2",)])


def everywhere(lab: Lab, rows: Contents) -> bool:
    """Whether every member has these rows, on the leader's timeline."""
    if len({one.get("timeline") for one in lab.cluster()["members"]}) != 1:
        return False
    return all(contents(lab, name) == rows for name in lab.names)


@pytest.mark.parametrize("standby", ["n2", "n3"])
def test_a_cascading_replica(scene: Scene, standby: str) -> None:
    """Held is the one that sends to another, or the one at the end."""
    lab = scene.lab
    assert scene.leader == "n1"
    cascading(scene)
    warnings = scene.checkpoint(standby=standby)["warnings"]
    assert any("cascading" in line for line in warnings), warnings
    new = scene.deploy(GOOD_MIGRATION)
    scene.must("resume", checkpoint=scene.record["id"])
    wait_for("the deployment everywhere", lambda: everywhere(lab, new))

    scene.checkpoint(standby=standby)
    lab.sql(scene.leader, "drop table shipments; update orders set total = 0", user="release")
    scene.rollback()
    assert scene.leader == standby
    wait_for("the rows everywhere", lambda: everywhere(lab, new))
