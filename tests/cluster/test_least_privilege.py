"""The role of Airflow's connection has exactly the rights of grants.sql, and needs each of them."""

from __future__ import annotations

import pytest
from tests.cluster.scene import Scene
from tests.cluster.verdict import look, unchanged

RIGHTS = {
    "pg_read_all_stats": ("revoke pg_read_all_stats from bluegreen", "grant pg_read_all_stats to bluegreen"),
    "pg_read_all_settings": ("revoke pg_read_all_settings from bluegreen", "grant pg_read_all_settings to bluegreen"),
    "pg_create_restore_point": (
        "revoke execute on function pg_catalog.pg_create_restore_point(text) from bluegreen",
        "grant execute on function pg_catalog.pg_create_restore_point(text) to bluegreen",
    ),
}
ATTRIBUTES = """
select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls from pg_roles where rolname = 'bluegreen'
"""
MEMBER_OF = """
select g.rolname from pg_auth_members m join pg_roles g on g.oid = m.roleid join pg_roles r on r.oid = m.member
where r.rolname = 'bluegreen' order by 1
"""
# everything in this database that names the role in its access list, or belongs to it
OBJECTS = """
select classid::regclass::text, pg_describe_object(classid, objid, objsubid), deptype::text
from pg_shdepend d where refobjid = 'bluegreen'::regrole and d.dbid in (0, (select oid from pg_database
    where datname = current_database()))
"""


def test_the_role_has_these_rights_and_no_other(clean: Scene) -> None:
    leader = clean.leader
    assert clean.lab.sql(leader, ATTRIBUTES) == [(False, False, False, False, False)]
    # the lab's deployments work on what belongs to the role `release`
    members = {name for (name,) in clean.lab.sql(leader, MEMBER_OF)}
    assert members == {"pg_read_all_stats", "pg_read_all_settings", "release"}
    objects = {(kind, what) for kind, what, _ in clean.lab.sql(leader, OBJECTS) if kind != "pg_auth_members"}
    assert objects == {("pg_proc", "function pg_create_restore_point(text)")}


@pytest.mark.parametrize("right", RIGHTS)
def test_without_one_of_them_no_checkpoint_is_taken(clean: Scene, right: str) -> None:
    leader, (revoke, grant) = clean.leader, RIGHTS[right]
    before = look(clean.lab)
    clean.lab.sql(leader, revoke)
    try:
        state, report = clean.run("checkpoint", label="lacks a right")
    finally:
        clean.lab.sql(leader, grant)
    assert state == "failed"
    assert report["result"] in ("refused", "failed")
    assert right in report["message"] or "grants.sql" in report["message"], report["message"]
    unchanged(clean.lab, before, seconds=60)
