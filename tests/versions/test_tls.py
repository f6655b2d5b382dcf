"""TLS to PostgreSQL and to Patroni's REST API: what does not fit is refused, and nothing is changed.

That what fits works is proven by test_paths.py, on the same lab.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import psycopg
import pytest
from lab.certificates import Authority, Pair
from lab.client import AirflowClient
from lab.cluster import Lab
from lab.config import Settings
from lab.files import write_pair
from lab.standalone import read_environment
from ruamel.yaml import YAML
from tests.cluster.scene import Scene, wait_for
from tests.cluster.verdict import unchanged
from tests.versions.inline import Inline

REFUSED_SECONDS = 30
POSTGRES, PATRONI = "AIRFLOW_CONN_LAB_POSTGRES", "AIRFLOW_CONN_LAB_PATRONI"

# registry name: the words of the refusal
MISTAKES = {
    "another_ca_for_postgresql": ("certificate verify failed", "'test_another_ca_for_postgresql'"),
    "no_tls_to_postgresql": ("no pg_hba.conf entry", "no encryption", "'test_no_tls_to_postgresql'"),
    "another_ca_for_patroni": ("CERTIFICATE_VERIFY_FAILED", "(test_another_ca_for_patroni)"),
    "no_client_certificate": ("CERTIFICATE_REQUIRED", "(test_no_client_certificate)"),
    "wrong_password_for_patroni": ("answered 401", "(test_wrong_password_for_patroni)"),
    "no_connection_for_patroni": ("CERTIFICATE_VERIFY_FAILED", "(none is set)"),
}


def mistaken(lab: Lab, name: str, connection: dict[str, Any], other_ca: str) -> dict[str, Any]:
    """The connection with its mistake."""
    extra = dict(connection["extra"])
    if name == "another_ca_for_postgresql":
        extra["sslrootcert"] = other_ca
    elif name == "no_tls_to_postgresql":
        extra = {"sslmode": "disable"}
    elif name == "another_ca_for_patroni":
        extra["verify"] = other_ca
    elif name == "no_client_certificate":
        extra = {"verify": extra["verify"]}
    elif name == "wrong_password_for_patroni":
        return {**connection, "password": "wrong"}
    return {**connection, "extra": extra}


@pytest.fixture(scope="module")
def mistakes(lab: Lab, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inline]:
    """Who runs the DAGs with a registry in which the same cluster is several times, each with one mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    environment = read_environment(run_folder)
    other_ca = folder / "other_ca.pem"
    other_ca.write_text(Authority.create("other").certificate)
    yaml = YAML()
    registry = yaml.load(Path(environment["BLUEGREEN_CLUSTERS"]).read_text())
    good = registry["clusters"][lab.name]
    for name in MISTAKES:
        key, variable = ("postgres_conn_id", POSTGRES) if "postgresql" in name else ("patroni_conn_id", PATRONI)
        conn_id = None if name == "no_connection_for_patroni" else f"test_{name}"
        registry["clusters"][name] = {**json.loads(json.dumps(good)), key: conn_id}
        connection = mistaken(lab, name, json.loads(environment[variable]), str(other_ca))
        environment[f"AIRFLOW_CONN_TEST_{name.upper()}"] = json.dumps(connection)
    path = folder / "clusters.yaml"
    with path.open("w") as file:
        yaml.dump(registry, file)
    inline = Inline({**environment, "BLUEGREEN_CLUSTERS": str(path)}, folder / "inline")
    yield inline
    inline.close()


def refused_quickly(scene: Scene, **conf: str) -> str:
    """Ask for a checkpoint, which must be refused; return its sentence."""
    begin = time.monotonic()
    sentence = scene.refused("checkpoint", **conf)
    assert time.monotonic() - begin < REFUSED_SECONDS, sentence
    assert "\n" not in sentence and len(sentence) < 700, sentence
    assert sentence.endswith("Nothing was changed."), sentence
    print(sentence)
    return sentence


@pytest.mark.parametrize("name", MISTAKES)
def test_a_connection_that_does_not_fit_is_refused(clean: Scene, mistakes: Inline, name: str) -> None:
    sentence = refused_quickly(Scene(clean.lab, cast(AirflowClient, mistakes), clean.fresh), cluster=name)

    assert all(words in sentence for words in MISTAKES[name]), sentence
    unchanged(clean.lab, clean.fresh)
    assert clean.locks() == []


@pytest.fixture
def renamed_leader(clean: Scene, settings: Settings) -> Iterator[str]:
    """The leader, whose server has a certificate for another address meanwhile."""
    lab, leader = clean.lab, clean.leader
    path = settings.tls_dir / f"{leader}_postgres.pem"
    ca = settings.tls_dir / "postgres_ca.pem"
    good = Pair(path.read_text(), path.with_suffix(".key").read_text())
    authority = Authority(Pair(ca.read_text(), ca.with_suffix(".key").read_text()))

    def serve(pair: Pair) -> None:
        write_pair(settings, path, pair)
        with lab.connect(leader, "postgres", sslmode="verify-ca") as connection:
            connection.execute("select pg_reload_conf()")

    def is_trusted() -> bool:
        try:
            lab.connect(leader, "postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    serve(authority.issue("127.0.99.99"))
    wait_for("the other certificate", lambda: not is_trusted())
    yield leader
    serve(good)
    wait_for("the right certificate", is_trusted)


def test_a_server_whose_certificate_has_another_name_is_refused(clean: Scene, renamed_leader: str) -> None:
    sentence = refused_quickly(clean)

    host = clean.lab.nodes[renamed_leader].host
    assert f'server certificate for "127.0.99.99" does not match host name "{host}"' in sentence, sentence
    assert clean.locks() == []


def test_after_all_of_these_nothing_is_changed(clean: Scene) -> None:
    unchanged(clean.lab, clean.fresh)


def test_the_lab_lets_nobody_in_without_tls(clean: Scene) -> None:
    lab = clean.lab
    leader = clean.leader
    for database in ("postgres", "app"):
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            lab.connect(leader, database, sslmode="disable")
    query = """
        select backend_type, s.ssl from pg_stat_activity a join pg_stat_ssl s using (pid) where client_addr is not null
    """
    found = lab.sql(leader, query)
    assert {is_encrypted for _, is_encrypted in found} == {True}
    assert [kind for kind, _ in found].count("walsender") == len(lab.names) - 1
    for node in lab.nodes.values():
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{node.rest}/patroni", verify=False, trust_env=False)
