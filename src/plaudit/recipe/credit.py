"""What of a sample is credited: the whole, its tokens, or its steps."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plaudit.recipe.base import PositiveFloat, Strict
from plaudit.recipe.models import Family


class OutcomeCredit(Strict):
    """Each sample's score against its group's."""

    families: ClassVar[tuple[Family, ...]] = ("flow", "tokens")
    where: ClassVar[str] = "sample"
    type: Literal["outcome"] = "outcome"
    """One number for all that led to a sample."""


class StepsCredit(Strict):
    """What each denoising step gained (DenseGRPO): the state before and after it, completed without noise, decoded and scored."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)
    where: ClassVar[str] = "decision"
    type: Literal["steps"]
    """A number for each denoising step."""
    of: Literal["gain", "worth"] = "gain"
    """What a step is credited with: what it gained, or (the paper's ablation) what the state after it is worth."""
    completion: Literal["full", "one_step"] = "full"
    """How a state is completed: along all steps that are left, or by its clean prediction (the paper's n = t and n = 1)."""


class PositionsCredit(Strict):
    """What a reward says of each token, against the group's tokens at the same position (DECS)."""

    families: ClassVar[tuple[Family, ...]] = ("tokens",)
    where: ClassVar[str] = "decision"
    type: Literal["positions"]
    """A number for each token."""
    reward: str
    """The reward of this recipe whose scores have a value per token; from the others nothing is learned."""
    correct: str
    """The reward of this recipe that is 1 for a right output and 0 for a wrong one, by which easy prompts are told."""
    floor: PositiveFloat = 1e-6
    """Smallest deviation divided by."""
    easy_gain: Annotated[float, Field(ge=0)] | None = None
    """How strongly the share of prompts that are always solved follows the needed share of reasoning (published: 0.2): never
    solved ones are left out, mixed ones learned from, and of the solved ones so many; null = all are learned from."""


Credit = Annotated[OutcomeCredit | StepsCredit | PositionsCredit, Field(discriminator="type")]
