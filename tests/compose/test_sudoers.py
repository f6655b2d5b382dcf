"""The SSH user has exactly the rights of docs/sudoers.example, and needs each of them."""

from __future__ import annotations

import subprocess

import pytest
from lab.compose.stack import ComposeLab
from lab.config import CHECKOUT
from tests.cluster.scene import Scene
from tests.cluster.verdict import look, unchanged

FILE = "/etc/sudoers.d/bluegreen"
EXAMPLE = CHECKOUT / "docs" / "sudoers.example"
RIGHTS = [
    "(postgres) NOPASSWD: /bin/sh -s",
    "(root) NOPASSWD: /usr/bin/systemctl start patroni, /usr/bin/systemctl stop patroni",
]
TAKEN = {
    "the shell as the owner of the data directory": ("(postgres) NOPASSWD: /bin/sh -s", "sudo"),
    "start": ("/usr/bin/systemctl start patroni, ", "'sudo systemctl start patroni'"),
    "stop": (", /usr/bin/systemctl stop patroni", "'sudo systemctl stop patroni'"),
}


def as_ssh_user(lab: ComposeLab, node: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the SSH user itself."""
    line = ["ssh", "-F", lab.info["ssh_config"], node, command]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


def test_the_ssh_user_has_these_rights_and_no_other(clean: Scene) -> None:
    lab = clean.lab
    assert isinstance(lab, ComposeLab)
    for node in lab.names:
        assert lab.on_node(node, "cat", FILE).stdout == EXAMPLE.read_text()
        said = as_ssh_user(lab, node, "sudo -n -l").stdout
        rights = [line.strip() for line in said.partition("may run the following")[2].splitlines()[1:] if line.strip()]
        assert rights == RIGHTS
        assert as_ssh_user(lab, node, "id -Gn").stdout.split() == ["bluegreen"]
        for command in (
            "sudo -n id",
            "sudo -n systemctl restart patroni",
            "sudo -n -u postgres id",
            "cat /etc/patroni/config.yml",
        ):
            assert as_ssh_user(lab, node, command).returncode, f"{command} was allowed"


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.parametrize("member", ["held", "leader"])
def test_without_one_of_them_there_is_no_checkpoint(clean: Scene, what: str, member: str) -> None:
    lab = clean.lab
    assert isinstance(lab, ComposeLab)
    text, named = TAKEN[what]
    leader = str(clean.fresh.leader)
    held = next(name for name in lab.names if name != leader)
    node = {"held": held, "leader": leader}[member]
    shorter = EXAMPLE.read_text().replace(text, "/bin/false" if text.startswith("(") else "")
    assert shorter != EXAMPLE.read_text()
    shorter = shorter.replace("ALL=/bin/false", "ALL=(postgres) NOPASSWD: /bin/false")
    before = look(lab)
    lab.on_node(
        node,
        "sh",
        "-c",
        f"umask 337; cat > {FILE}.new && visudo -qcf {FILE}.new && mv {FILE}.new {FILE}",
        stdin=shorter,
    )
    try:
        sentence = clean.refused("checkpoint", standby=held)
    finally:
        lab.on_node(node, "sh", "-c", f"chmod u+w {FILE}; cat > {FILE}; chmod 440 {FILE}", stdin=EXAMPLE.read_text())
    assert named in sentence
    assert node in sentence
    unchanged(lab, before)
