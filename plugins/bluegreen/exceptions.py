"""What can go wrong, sorted by what may be done about it.

A caller decides on the class alone: refuse, try again, or look before doing anything.
"""

from __future__ import annotations

SENTENCE_MAX = 2000


class BluegreenError(Exception):
    """Base of every error raised by this project; its text is a sentence for a person.

    What a node or a form put into it cannot break the line, steer a terminal or fill a screen.
    """

    def __init__(self, text: str = "") -> None:
        shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:SENTENCE_MAX])
        super().__init__(shown + ("..." if len(text) > SENTENCE_MAX else ""))


class RefusedError(BluegreenError):
    """Going on would be unsafe, or the input is wrong. Never retried."""


class RegistryError(RefusedError):
    """The registry (``include/clusters.yaml``) has a mistake, or does not name the cluster."""


class CheckpointLostError(RefusedError):
    """The held standby no longer has the state before the mark; nothing can be rolled back to."""


class LockedError(RefusedError):
    """Another run holds the cluster's lock."""


class FailedForNowError(BluegreenError):
    """The attempt had no effect, or one that the next look will show. May be retried."""


class UnreachableError(FailedForNowError):
    """A node, a server or a REST API did not answer within its time."""


class OutcomeUnknownError(BluegreenError):
    """A command may or may not have taken effect: read the state before repeating it."""
