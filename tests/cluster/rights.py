"""The rights that grants.sql of this lab's version gives: what takes each away, and what the role has beyond them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lab.cluster import Lab
from tests.cluster.scene import Scene
from tests.cluster.verdict import look, unchanged

from bluegreen.statements import statement_path

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


def grants(lab: Lab) -> Iterator[str]:
    """Each right in the words of a grant, as `pg_read_all_stats` or `execute on function f(text)`."""
    version = int(lab.value(lab.wait_leader(), "select current_setting('server_version_num')"))
    text = statement_path("grants", version).read_text()
    for right in re.findall(r'^grant (.+) to :"role";$', text, re.MULTILINE):
        yield from [right] if right.startswith("execute on ") else right.split(", ")


def has_these_and_no_other(lab: Lab, *, besides: frozenset[str] = frozenset()) -> None:
    """Raise unless the role has what the file gives.

    :param besides: roles that it is a member of for the sake of deployments.
    """
    leader, given = lab.wait_leader(), set(grants(lab))
    functions = {right.rpartition(".")[2] for right in given if right.startswith("execute on function ")}
    roles = {right for right in given if not right.startswith("execute on ")}
    assert len(functions) + len(roles) == len(given) >= 3
    assert lab.sql(leader, ATTRIBUTES) == [(False, False, False, False, False)]
    assert {name for (name,) in lab.sql(leader, MEMBER_OF)} == roles | besides
    # in 16 and newer a membership is such an object too
    objects = {what for kind, what in lab.sql(leader, OBJECTS) if kind != "pg_auth_members"}
    assert objects == {f"function {name}" for name in functions}


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
