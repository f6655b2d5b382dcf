"""What a client sees that writes and reads through HAProxy during a good and a bad deployment."""

from __future__ import annotations

import pytest
from lab.compose import demo
from tests.cluster.scene import Scene


def test_a_client_sees_one_interruption_and_no_discarded_row(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    code = demo.main()
    said = capsys.readouterr().out
    print(said[-3000:])
    assert code == 0
    assert "bad deployment:  1 interruption of writes, " in said
