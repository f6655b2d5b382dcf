"""The rights of grants.sql: what the role has beyond them, and what becomes of a checkpoint without one of them."""

from __future__ import annotations

from lab.cluster import Lab
from tests.cluster.scene import Scene
from tests.cluster.verdict import look, unchanged

ROLE = "bluegreen"
ATTRIBUTES = """
select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls from pg_roles where rolname = 'bluegreen'
"""
MEMBER_OF = """
select g.rolname from pg_auth_members m join pg_roles g on g.oid = m.roleid join pg_roles r on r.oid = m.member
where r.rolname = 'bluegreen' order by 1
"""
# everything in this database that names the role in its access list, or belongs to it
OBJECTS = """
select classid::regclass::text, pg_describe_object(classid, objid, objsubid) from pg_shdepend
where refobjid = 'bluegreen'::regrole and dbid in (0, (select oid from pg_database where datname = current_database()))
"""


RIGHTS = (
    "pg_read_all_stats",
    "pg_read_all_settings",
    "execute on function pg_catalog.pg_create_restore_point(text)",
)
# the hold is a pause there
BEFORE_12 = (
    "execute on function pg_catalog.pg_wal_replay_pause()",
    "execute on function pg_catalog.pg_wal_replay_resume()",
)


def rights(lab: Lab) -> tuple[str, ...]:
    """What grants.sql gives on this lab's version, in the words of a grant; the servers must have no more."""
    version = int(lab.value(lab.wait_leader(), "select current_setting('server_version_num')"))
    return RIGHTS if version >= 120000 else RIGHTS + BEFORE_12


def has_these_and_no_other(lab: Lab, *, besides: frozenset[str] = frozenset()) -> None:
    """Raise unless the role has what the file gives.

    :param besides: roles that it is a member of for the sake of deployments.
    """
    leader, given = lab.wait_leader(), rights(lab)
    functions = {right.rpartition(".")[2] for right in given if right.startswith("execute on function ")}
    roles = {right for right in given if not right.startswith("execute on ")}
    assert lab.sql(leader, ATTRIBUTES) == [(False, False, False, False, False)]
    assert {name for (name,) in lab.sql(leader, MEMBER_OF)} == roles | besides
    # in 16 and newer a membership is such an object too
    objects = {one for one in lab.sql(leader, OBJECTS) if one[0] != "pg_auth_members"}
    assert objects == {("pg_proc", f"function {name}") for name in functions}


def is_refused_without(scene: Scene, right: str) -> None:
    """Raise unless a checkpoint without this right is refused, says so, and leaves the cluster as it was."""
    lab, leader = scene.lab, scene.leader
    before = look(lab)
    lab.sql(leader, f"revoke {right} from {ROLE}")
    try:
        state, report = scene.run("checkpoint", label="lacks a right")
    finally:
        lab.sql(leader, f"grant {right} to {ROLE}")
    assert state == "failed", f"without {right}: {report['message']}"
    assert report["result"] in ("refused", "failed")
    name = right.rpartition(".")[2].partition("(")[0]
    assert name in report["message"] or "grants.sql" in report["message"], report["message"]
    assert "Nothing was changed." in report["message"] or report["result"] == "failed", report["message"]
    unchanged(lab, before, seconds=60)
