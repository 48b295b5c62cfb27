"""Errors are one line with everything a user needs, keep their exit code, and survive a process border."""

from __future__ import annotations

import pickle

import pytest

from medseg import errors
from medseg.errors import MedsegError, UsageError, nearest

CODES = {
    "UsageError": 2, "InputRefused": 3, "UnreadableFile": 3, "BadGeometry": 3, "BadVoxels": 3, "BadLabels": 3,
    "BadDataset": 3, "ResourceError": 4, "UnsafeArtefact": 5, "PartialFailure": 6, "Interrupted": 143,
}  # fmt: skip
KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MedsegError)
]  # every class of the tree


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_exit_codes_are_the_published_ones(kind):
    assert kind.exit_code == CODES.get(kind.__name__, 1)
    assert kind is MedsegError or kind.__name__ in CODES


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_crosses_a_process_border_whole(kind):
    error = kind("p", case="c", path="/f", fix="x", written="w")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == "case c, /f: p. Fix: x. w"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("what"), "what."),
        (UsageError("what."), "what."),
        (UsageError("what?"), "what?"),
        (UsageError("two\n  lines"), "two lines."),
        (UsageError("what", path="/f", written=""), "/f: what."),
    ],
)
def test_a_message_is_one_line(error, line):
    assert str(error) == line


def test_nearest_names_what_was_meant_or_what_there_is():
    assert nearest("unetp", ["unet", "unetpp"]) == "did you mean 'unetpp'? (known: unet, unetpp)"
    assert nearest("zzz", ["b", "a"]) == "(known: a, b)"
    assert nearest("x", []) == "(known: )"


def test_another_number_is_no_slip_and_a_short_part_is_none() -> None:
    assert nearest("c00", ["c01", "c04"]) == "(known: c01, c04)"
    assert nearest("case_1", ["case_10"]) == "(known: case_10)"
    assert nearest("hd95", ["lesionwise_hd95", "iou"]) == "(known: iou, lesionwise_hd95)"
    assert nearest("hippo", ["hippocampus", "phantom"]).startswith("did you mean 'hippocampus'?")
    assert nearest(3, [1, 2]) == "(known: 1, 2)"
