"""The exact checker of the `edits` world: whether an instruction was carried out, and whether all else stayed as it was.

Objects are read from the pixels (`lab.scenes.check.detect`). One is where it should be when its kind is right and its centre lies
within `NEAR` pixels. *Execution*: everything new is there, nothing that should be gone is. *Consistency*: how much of what was
to be kept is there, over that and all that is there besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plaudit.errors import DataError
from plaudit.lab.edits.grammar import DIRECTIONS
from plaudit.lab.scenes.check import UNEXPLAINED_LIMIT, Scene, SceneObject, detect

NEAR = 2.5  # pixels between where a centre is and should be
MOVED = 4.0  # pixels at least in the direction named; true moves have 8

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EditVerdict:
    execution: bool
    consistency: float

    @property
    def correct(self) -> bool:
        return self.execution and self.consistency == 1.0


def check_edits(images: Tensor, facts: Sequence[Facts]) -> list[EditVerdict]:
    for row in facts:
        if not {"kept", "gone", "new"} <= row.keys():
            raise DataError(f"edits: the facts have {', '.join(row) or 'nothing'}; they need kept, gone and new")
    return [judge_edit(scene, row) for scene, row in zip(detect(images), facts, strict=True)]


def judge_edit(scene: Scene, facts: Facts) -> EditVerdict:
    left = list(scene.objects)
    kept = [_take(left, thing) for thing in facts["kept"]]
    made = [_take(left, thing) for thing in facts["new"]]
    still = [thing for thing in facts["gone"] if any(_is(found, thing) for found in left)]
    surplus = len(left) + len(scene.blobs) + (scene.unexplained > UNEXPLAINED_LIMIT) - len(still)
    wanted = len(kept) + surplus
    return EditVerdict(execution=all(made) and not still, consistency=sum(kept) / wanted if wanted else 1.0)


def _take(left: list[SceneObject], thing: Facts) -> bool:
    """Whether it is there; what was found is not found again."""
    for found in left:
        if _is(found, thing):
            left.remove(found)
            return True
    return False


def _is(found: SceneObject, thing: Facts) -> bool:
    if (found.color, found.shape) != (thing["color"], thing["shape"]):
        return False
    if "x" not in thing:
        return True
    dx, dy = found.x - thing["x"], found.y - thing["y"]
    if "direction" not in thing:
        return max(abs(dx), abs(dy)) <= NEAR
    along = DIRECTIONS[thing["direction"]]
    return dx * along[0] + dy * along[1] >= MOVED and abs(dx * along[1]) + abs(dy * along[0]) <= NEAR
