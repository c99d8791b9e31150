"""The world of edits: what instructions say, and a checker that knows whether they were carried out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plaudit.errors import DataError
from plaudit.lab.edits.check import check_edits
from plaudit.lab.edits.grammar import CATEGORIES, DIRECTIONS, Edit, sample_edits, tokenise
from plaudit.lab.edits.network import EditNetwork
from plaudit.lab.scenes.check import detect
from plaudit.lab.scenes.render import rasterise, slots_of


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return [
        edit
        for number, category in enumerate(CATEGORIES)
        for edit in sample_edits("train", 16, np.random.default_rng([number, 8]), (category,))
    ]


def test_what_was_carried_out_is_right_and_what_was_left_alone_is_only_consistent(edits: list[Edit]) -> None:
    facts = [edit.prompt.facts for edit in edits]
    done = check_edits(rasterise(torch.stack([edit.target for edit in edits])), facts)
    left = check_edits(torch.stack([edit.prompt.inputs["source"] for edit in edits]), facts)
    assert all(verdict.correct for verdict in done)
    assert not any(verdict.execution for verdict in left)
    assert all(verdict.consistency == 1.0 for verdict in left)


def test_each_text_says_what_became_of_the_scene(edits: list[Edit]) -> None:
    sources = detect(torch.stack([edit.prompt.inputs["source"] for edit in edits]))
    targets = detect(rasterise(torch.stack([edit.target for edit in edits])))
    for edit, source, target in zip(edits, sources, targets, strict=True):
        before, after = ({f"{o.color} {o.shape}" for o in scene.objects} for scene in (source, target))
        words, gone, new = edit.prompt.text.split(), before - after, after - before
        match edit.prompt.facts["category"]:
            case "recolour":
                assert gone == {" ".join(words[2:4])} and new == {f"{words[4]} {words[3]}"}
            case "reshape":
                assert gone == {" ".join(words[2:4])} and new == {f"{words[2]} {words[6]}"}
            case "remove":
                assert gone == {" ".join(words[2:4])} and not new
            case "add":
                assert new == {" ".join(words[2:4])} and not gone
            case "move":
                assert not gone and not new
                was, now = (
                    next(o for o in scene.objects if [o.color, o.shape] == words[2:4]) for scene in (source, target)
                )
                along = DIRECTIONS[words[4]]
                assert (now.x - was.x) * along[0] + (now.y - was.y) * along[1] > 7


def at(color: str, shape: str, x: float, y: float) -> dict:
    return {"color": color, "shape": shape, "x": x, "y": y, "radius": 4.0}


KEPT, GONE = at("blue", "square", 24, 24), at("red", "circle", 8, 8)
RECOLOUR = {"kept": [KEPT], "gone": [GONE], "new": [at("green", "circle", 8, 8)]}
MOVE = {"kept": [], "gone": [GONE], "new": [{**GONE, "direction": "down"}]}


@pytest.mark.parametrize(
    ("facts", "shown", "execution", "consistency"),
    [
        (RECOLOUR, [at("green", "circle", 9.5, 8), at("blue", "square", 24, 22.5)], True, 1.0),
        (RECOLOUR, [at("green", "circle", 12, 8), at("blue", "square", 24, 24)], False, 0.5),  # at another place
        (RECOLOUR, [at("green", "circle", 8, 8)], True, 0.0),  # and the bystander is gone
        (RECOLOUR, [at("green", "circle", 8, 8), KEPT, at("red", "circle", 24, 8)], True, 0.5),
        (RECOLOUR, [KEPT], False, 1.0),
        (MOVE, [at("red", "circle", 8, 20)], True, 1.0),
        (MOVE, [at("red", "circle", 8, 10)], False, 1.0),  # hardly
        (MOVE, [at("red", "circle", 14, 20)], False, 0.0),  # and sideways
        (MOVE, [at("red", "circle", 8, 20), GONE], False, 1.0),  # a copy
    ],
)
def test_near_misses_are_told(facts: dict, shown: list[dict], execution: bool, consistency: float) -> None:
    verdict = check_edits(rasterise(slots_of(shown)[None]), [facts])[0]
    assert (verdict.execution, verdict.consistency) == (execution, consistency)


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(DataError, match="uses 'paint'; at most 8 words are read, of: red"):
        tokenise(["paint the red circle blue"])
    with pytest.raises(DataError, match="no picture `source` of 32 x 32"):
        prompt = sample_edits("train", 1, np.random.default_rng(0))[0].prompt
        EditNetwork.read([type(prompt)(id="a", text=prompt.text)])
    with pytest.raises(DataError, match="they need kept, gone and new"):
        check_edits(torch.zeros(1, 3, 32, 32), [{"objects": []}])
