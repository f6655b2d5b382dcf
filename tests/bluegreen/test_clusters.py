from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluegreen.clusters import (
    PROJECT_ROOT,
    Cluster,
    NodeCommands,
    Registry,
    deployment_sql_path,
    load_registry,
    parse_registry,
)
from bluegreen.exceptions import RefusedError, RegistryError

REQUIRED = "patroni: [http://10.0.0.1:8008], postgres_conn_id: orders_postgres, ssh_conn_id: orders_ssh"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0a"


def _parse(text: str) -> Registry:
    return parse_registry(text, source="clusters.yaml")


def _orders(more: str = "") -> Cluster:
    return _parse(f"clusters: {{orders: {{{REQUIRED}{', ' if more else ''}{more}}}}}").get("orders")


def _mistake(more: str) -> str:
    with pytest.raises(RegistryError) as caught:
        _orders(more)
    sentence = str(caught.value)
    prefix = "clusters.yaml: cluster 'orders': "
    assert sentence.startswith(prefix)
    assert "\n" not in sentence
    return sentence.removeprefix(prefix)


def test_the_shipped_registry_loads_and_holds_no_cluster() -> None:
    registry = load_registry(PROJECT_ROOT / "include" / "clusters.yaml")
    assert registry.clusters == {} and registry.broken == {}


def test_the_commented_example_is_valid_and_shows_the_defaults() -> None:
    shipped = (PROJECT_ROOT / "include" / "clusters.yaml").read_text(encoding="utf-8")
    commented = shipped[shipped.index("# clusters:") : shipped.rindex("clusters: {}")]
    example = _parse(re.sub(r"^# ?", "", commented, flags=re.MULTILINE)).get("orders")
    bare = _orders().model_copy(update={"patroni": example.patroni, "deployments": example.deployments})
    assert example == bare
    assert example.hosts == ["10.0.0.1", "10.0.0.2"]
    assert example.deployments["release"].sql == "releases/current.sql"


def test_the_defaults() -> None:
    cluster = _orders()
    assert cluster.name == "orders"
    assert cluster.limits.lag_bytes == 64 * 1024**2
    assert cluster.limits.lag_seconds == 30
    assert cluster.limits.disk_free_percent == 15
    assert cluster.limits.slot_wal_bytes == 10 * 1024**3
    assert cluster.limits.replay_age_seconds == 86400
    assert (cluster.expires_after_seconds, cluster.ask_timeout_seconds) == (86400, 3600)
    assert cluster.rewind_timeout_seconds == 3600
    assert (cluster.auto_release, cluster.ask_default, cluster.adhoc) == (True, "rollback", False)
    assert cluster.node.start == "sudo systemctl start patroni"


@pytest.mark.parametrize(
    ("written", "size"),
    [("64MB", 64 * 1024**2), ("'64 MB'", 64 * 1024**2), ("8kB", 8192), ("1TB", 1024**4), ("1gb", 1024**3),
     ("12B", 12), ("12", 12), ("0", 0), ("'12'", 12)],
)  # fmt: skip
def test_sizes(written: str, size: int) -> None:
    assert _orders(f"limits: {{lag_bytes: {written}, slot_wal: {written}}}").limits.slot_wal_bytes == size


@pytest.mark.parametrize("written", ["lots", "64XB", "-1", "true", "1.5GB", "null", "[1]", "''", "64MB 3", ".inf"])
def test_what_is_no_size(written: str) -> None:
    assert re.fullmatch(
        r"limits\.lag_bytes: found .+, expected a size such as 64MB",
        _mistake(f"limits: {{lag_bytes: {written}}}"),
    )


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("24h", 86400), ("30m", 1800), ("30min", 1800), ("60s", 60), ("7d", 604800), ("90", 90), ("20d", 1728000)],
)
def test_durations(written: str, seconds: int) -> None:
    assert _orders(f"expires_after: {written}").expires_after_seconds == seconds


@pytest.mark.parametrize("written", ["24 hours", "24H", "-1", "false", "1.5h", "2024-01-01", "''"])
def test_what_is_no_duration(written: str) -> None:
    assert "expected a duration such as 30m or 24h" in _mistake(f"expires_after: {written}")


def test_a_checkpoint_may_not_outlive_its_hold() -> None:
    assert _mistake("expires_after: 21d") == (
        "expires_after: found '21d', expected at most 20d, because the hold itself ends then"
    )
    assert "longer than 0" in _mistake("expires_after: 0")
    assert "longer than 0" in _mistake("ask_timeout: 0s")
    assert "longer than 0" in _mistake("rewind_timeout: 0")
    assert "at most 6h" in _mistake("rewind_timeout: 7h")


def test_lag_seconds_may_have_a_fraction() -> None:
    assert _orders("limits: {lag_seconds: 0.5}").limits.lag_seconds == 0.5
    assert _orders("limits: {lag_seconds: 2m}").limits.lag_seconds == 120


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("limits: {lag_bytes: lots}", "limits.lag_bytes: found 'lots', expected a size such as 64MB"),
        ("limts: {}", "'limts' is not a known key; did you mean 'limits'?"),
        ("limits: {lag_byts: 1}", "limits: 'lag_byts' is not a known key; did you mean 'lag_bytes'?"),
        ("limits: {slot_wal_bytes: 1}", "limits: 'slot_wal_bytes' is not a known key; did you mean 'slot_wal'?"),
        ("node: {strt: x}", "node: 'strt' is not a known key; did you mean 'start'?"),
        ("deployments: {r: {sgl: x, command: x, checks: [x]}}",
         "deployments.r: 'sgl' is not a known key; did you mean 'sql'?"),
        ("zzz: 1", "'zzz' is not a known key"),
        ("name: x", "'name' is not a known key; the name is the key above it"),
        ("limits: {lag_seconds: .nan}", "limits.lag_seconds: found nan, expected seconds, such as 30"),
        ("limits: {disk_free_percent: 100}",
         "limits.disk_free_percent: found 100, expected a percentage from 0 to below 100, such as 15"),
        ("limits: null", "limits: found nothing, expected a mapping"),
        ("auto_release: 'yes'", "auto_release: found 'yes', expected true or false"),
        ("auto_release: 1", "auto_release: found 1, expected true or false"),
        ("adhoc: yes", "adhoc: found 'yes', expected true or false"),
        ("ask_default: wait", "ask_default: found 'wait', expected rollback or resume"),
        ("ssh_hosts: {n1: 'a b'}", "ssh_hosts.n1: found 'a b', expected a host name or an IP address"),
        ("deployments: {r: {sql: a.sql, command: b, checks: [c]}}",
         "deployments.r: found both 'sql' and 'command', expected exactly one of them"),
        ("deployments: {r: {checks: [c]}}",
         "deployments.r: found neither 'sql' nor 'command', expected exactly one of them"),
        ("deployments: {r: {sql: a.sql}}", "deployments.r.checks: found nothing, expected this key"),
        ("deployments: {r: {sql: a.sql, checks: []}}",
         "deployments.r.checks: found an empty list, expected at least one entry"),
        ("deployments: {r: {sql: a.sql, checks: select}}",
         "deployments.r.checks: found a text of 6 characters that is not shown here, expected a list"),
        ("node: {patroni_config: patroni.yml}",
         "node.patroni_config: found 'patroni.yml', expected an absolute path"),
        ("node: {start: ''}", "node.start: found an empty text, expected one line of text that is not empty"),
        ("node: {os_user: 'a b'}",
         "node.os_user: found 'a b', expected the name of an operating system user, such as postgres"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(more: str, sentence: str) -> None:
    assert _mistake(more) == sentence


def test_all_mistakes_of_a_cluster_are_told_together() -> None:
    assert _mistake("limits: {lag_bytes: lots}, adhoc: 3, limts: 1") == (
        "limits.lag_bytes: found 'lots', expected a size such as 64MB; adhoc: found 3, expected true or false; "
        "'limts' is not a known key; did you mean 'limits'?"
    )


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RegistryError, match="'a': patroni: found nothing, expected this key; postgres_conn_id: "):
        _parse("clusters: {a: {}}").get("a")


@pytest.mark.parametrize(
    "url",
    ["ftp://10.0.0.1:8008", "10.0.0.1:8008", "http://", "http://h:99999", "http://h:x", "http://h:0",
     "http://h/patroni", "http://h:8008?x=1", "http://h;reboot:8008", "http://$(x):8008", "http://[::1", "http://h i"],
)  # fmt: skip
def test_what_is_no_url_of_patroni(url: str) -> None:
    registry = _parse(f"clusters: {{a: {{patroni: ['{url}'], postgres_conn_id: p, ssh_conn_id: s}}}}")
    assert registry.broken["a"].startswith("clusters.yaml: cluster 'a': patroni[0]: found ")


def test_the_hosts_come_in_order_and_once() -> None:
    urls = "['https://B.example:8008/', 'http://10.0.0.1', 'http://[fd00::1]:8008', 'http://10.0.0.1:8009']"
    cluster = _parse(f"clusters: {{a: {{patroni: {urls}, postgres_conn_id: p, ssh_conn_id: s}}}}").get("a")
    assert cluster.hosts == ["b.example", "10.0.0.1", "fd00::1"]
    assert cluster.patroni[0] == "https://B.example:8008"


def test_a_registry_without_urls_is_refused() -> None:
    broken = _parse("clusters: {a: {patroni: [], postgres_conn_id: p, ssh_conn_id: s}}").broken["a"]
    assert broken.endswith("patroni: found an empty list, expected at least one entry")


def test_host_keys() -> None:
    assert _orders(f"ssh_host_keys: {{n1: '{KEY}'}}").ssh_host_keys == {"n1": KEY}
    for wrong in ("AAAA", "ssh-ed25519", "ssh-ed25519 not!base64", "ssh-ed25519 AAAAA", f"host {KEY}"):
        assert "expected a public host key" in _mistake(f"ssh_host_keys: {{n1: '{wrong}'}}")


@pytest.mark.parametrize("member", ["a b", "a;b", "$(x)", "-rf", "a/b", "", "a'b"])
def test_a_members_name_that_a_shell_could_read_is_refused(member: str) -> None:
    assert "expected a member's name" in _mistake(f'ssh_hosts: {{"{member}": 10.0.0.1}}')
    node = NodeCommands(start="start {member}")
    with pytest.raises(RefusedError, match="cannot be put into the commands"):
        node.for_member(member)


def test_the_members_name_is_put_into_the_commands() -> None:
    node = _orders("node: {start: 'ctl start {member} ${HOME}', patroni_config: '/etc/{member}.yml'}").node
    assert node.for_member("n-1.example").start == "ctl start n-1.example ${HOME}"
    assert node.for_member("n1").patroni_config == "/etc/n1.yml"
    assert NodeCommands().for_member("any name") == NodeCommands()


@pytest.mark.parametrize("name", ["bad name", "a/b", "x" * 64, "''", "{a: b}", "[a]", "ö", "~x"])
def test_a_clusters_name(name: str) -> None:
    registry = _parse(f"clusters: {{? {name} : {{{REQUIRED}}}}}")
    assert not registry.clusters
    assert "expected a name of 1 to 63 letters" in next(iter(registry.broken.values()))


def test_a_mistake_disables_its_own_cluster_only() -> None:
    registry = _parse(
        f"clusters:\n  good: {{{REQUIRED}}}\n  twice: {{adhoc: true, adhoc: false}}\n"
        f"  typed: !vault x\n  listed: []\n  dated: {{expires_after: 2024-13-45}}\n  again: {{}}\n  again: {{}}\n"
    )
    assert list(registry.clusters) == ["good"]
    assert set(registry.broken) == {"twice", "typed", "listed", "dated", "again"}
    assert "the key 'adhoc' is there twice, expected once" in registry.broken["twice"]
    assert registry.broken["listed"] == "clusters.yaml: cluster 'listed': found an empty list, expected a mapping"
    with pytest.raises(RegistryError, match="cluster 'again': it is there twice"):
        registry.get("again")


def test_clusters_may_share_values_by_anchor() -> None:
    registry = _parse(f"clusters:\n  a: &a {{{REQUIRED}}}\n  b: {{<<: *a, adhoc: true}}\n")
    assert registry.get("b").adhoc and not registry.get("a").adhoc


def test_an_unknown_cluster_names_the_known_ones() -> None:
    registry = _parse(f"clusters: {{orders: {{{REQUIRED}}}, billing: {{}}}}")
    with pytest.raises(RegistryError) as caught:
        registry.get("ordes")
    assert str(caught.value) == (
        "clusters.yaml: there is no cluster 'ordes'; did you mean 'orders'?; it has billing, orders"
    )
    with pytest.raises(RegistryError, match="it has no cluster at all"):
        _parse("clusters:\n").get("orders")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "clusters.yaml: found nothing, expected a mapping with the key 'clusters'"),
        ("- a", "clusters.yaml: found a list, expected a mapping with the key 'clusters'"),
        ("text", "clusters.yaml: found a single value, expected a mapping with the key 'clusters'"),
        ("{}", "clusters.yaml: found an empty mapping, expected one key 'clusters'"),
        ("cluster: {}", "clusters.yaml: 'cluster' is not a known key; did you mean 'clusters'?"),
        ("clusters: {}\nclusters: {}", "clusters.yaml: found the key 'clusters' twice, expected one key 'clusters'"),
        ("clusters: [a]", "clusters.yaml: clusters: found a list, expected a mapping"),
        ("clusters:\n\t- a", "clusters.yaml: line 2, column 1: this is not valid YAML: "
         "found character '\\t' that cannot start any token"),
        ("[" * 5000, "clusters.yaml: this is not valid YAML: it holds a value that cannot be read"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_registry(text: str, sentence: str) -> None:
    with pytest.raises(RegistryError) as caught:
        _parse(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "more",
    ["patroni_conn_id: 'postgresql://u:hunter2@h/db'", "password: hunter2", "node: {start: \"x\\nhunter2\"}",
     "deployments: {r: {command: hunter2, sql: hunter2, checks: [hunter2]}}",
     "deployments: {r: {command: x, checks: hunter2}}", "limits: {lag_bytes: 'u:hunter2@h'}",
     "ssh_host_keys: {n1: {hunter2: hunter2}}", "adhoc: true, adhoc: hunter2", "limits: {a: {b: hunter2}}",
     "patroni_conn_id: *hunter2", "patroni_conn_id: !hunter2 x"],
)  # fmt: skip
def test_no_secret_is_repeated(more: str) -> None:
    with pytest.raises(RegistryError) as caught:
        _orders(more)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_in_patronis_url_is_refused_and_not_repeated() -> None:
    text = "clusters: {a: {patroni: ['http://u:hunter2@h:8008'], postgres_conn_id: p, ssh_conn_id: s}}"
    sentence = _parse(text).broken["a"]
    assert "without user, password" in sentence and "hunter2" not in sentence


def test_structures_that_grow_or_contain_themselves_are_answered_in_no_time() -> None:
    laughs = "clusters:\n a: &a [x, x]\n" + "".join(
        f" {chr(c)}: &{chr(c)} [*{chr(c - 1)}, *{chr(c - 1)}]\n" for c in range(ord("b"), ord("z"))
    )
    assert all("expected a mapping" in sentence for sentence in _parse(laughs).broken.values())
    assert _parse("clusters: &a {b: *a}").broken
    assert _parse("clusters: {a: &a {patroni: *a, limits: {lag_bytes: *a}}}").broken


_WORDS = st.sampled_from([*"{}[]:,-&*!|>'\"%@?# \n\t", "clusters:", "\n  a:", "<<", "limits", "1e999", "~", "\x00"])


@given(st.one_of(st.text(), st.lists(_WORDS).map("".join), st.lists(_WORDS).map(lambda w: "clusters: " + "".join(w))))
def test_any_text_gives_a_registry_or_a_registry_error(text: str) -> None:
    try:
        registry = _parse(text)
    except RegistryError as error:
        assert "\n" not in str(error)
    else:
        assert all("\n" not in sentence for sentence in registry.broken.values())


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from([*Cluster.model_fields, "expires_after", "ask_timeout", "rewind_timeout", "other"])


@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_any_values_give_a_registry(values: dict[str, object]) -> None:
    from io import StringIO

    from ruamel.yaml import YAML

    stream = StringIO()
    YAML(typ="safe", pure=True).dump({"clusters": {"a": values}}, stream)
    try:
        registry = _parse(stream.getvalue())
    except RegistryError:
        return  # what YAML could not carry
    assert set(registry.clusters) | set(registry.broken) == {"a"}


def test_the_registry_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        _orders().adhoc = True  # type: ignore[misc]


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(f"clusters: {{orders: {{{REQUIRED}}}}}")
    monkeypatch.setenv("BLUEGREEN_CLUSTERS", str(tmp_path / "mine.yaml"))
    assert list(load_registry().clusters) == ["orders"]
    monkeypatch.delenv("BLUEGREEN_CLUSTERS")
    assert load_registry().clusters == load_registry(PROJECT_ROOT / "include" / "clusters.yaml").clusters


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"none\.yaml does not exist: create it, or name another file"):
        load_registry(tmp_path / "none.yaml")
    with pytest.raises(RegistryError, match="cannot be read: Is a directory"):
        load_registry(tmp_path)
    with pytest.raises(RegistryError, match="cannot be read"):
        load_registry(Path("a\x00b"))
    (tmp_path / "latin.yaml").write_bytes(b"clusters: {\xe9: 1}")
    with pytest.raises(RegistryError, match="not UTF-8"):
        load_registry(tmp_path / "latin.yaml")


def test_a_deployments_file_is_found_below_include(tmp_path: Path) -> None:
    include = tmp_path / "include"
    (include / "releases").mkdir(parents=True)
    (include / "releases" / "1.sql").write_text("select 1")
    (include / "current.sql").symlink_to("releases/1.sql")
    assert deployment_sql_path(include, "releases/1.sql") == (include / "releases" / "1.sql").resolve()
    assert deployment_sql_path(include, "current.sql") == (include / "releases" / "1.sql").resolve()


@pytest.mark.parametrize(
    "relative",
    ["", " ", "/etc/passwd", "../secret.sql", "releases/../../secret.sql", "out.sql", "dir/secret.sql", "loop.sql",
     "none.sql", "releases", "a\x00b", "x" * 5000],
)  # fmt: skip
def test_a_deployments_file_elsewhere_is_refused(tmp_path: Path, relative: str) -> None:
    include = tmp_path / "include"
    (include / "releases").mkdir(parents=True)
    (tmp_path / "secret.sql").write_text("select 1")
    (include / "out.sql").symlink_to(tmp_path / "secret.sql")
    (include / "dir").symlink_to(tmp_path)
    (include / "loop.sql").symlink_to("loop.sql")
    with pytest.raises(RefusedError) as caught:
        deployment_sql_path(include, relative)
    assert "\n" not in str(caught.value)
