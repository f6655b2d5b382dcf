from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bluegreen.exceptions import SENTENCE_MAX, RefusedError


@given(st.text())
def test_a_sentence_is_always_one_printable_line(text: str) -> None:
    assert str(RefusedError(text)).isprintable()


def test_a_sentence_shows_what_is_not_printable_escaped_and_is_bounded() -> None:
    assert str(RefusedError("a\n\x1b[31m\u202eü\x00")) == r"a\n\x1b[31m\u202eü\x00"
    assert len(str(RefusedError("x" * 10 * SENTENCE_MAX))) == SENTENCE_MAX + 3
