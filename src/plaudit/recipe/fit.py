"""How a reward is fitted: to which preferences, what looks at them, and what is minimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plaudit.recipe.base import Fraction, Positive, Strict


class ScenesPairs(Strict):
    """Pairs of the lab: of a caption a true picture, and one that shows something else of its kind."""

    type: Literal["scenes"] = "scenes"
    """Rendered pairs of the lab world `scenes`."""
    pairs: Positive = 4_000
    """Pairs to learn from."""
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of them that are swapped; held-out ones are not."""


class FilePairs(Strict):
    """Preferences from a file, in one of the layouts of docs/preferences.md."""

    type: Literal["file"]
    """Preferences from a file."""
    path: str
    """The file; pictures lie beside it."""
    layout: str | None = None
    """Name of its layout; null = told from its columns."""


class BradleyTerry(Strict):
    """-log sigmoid(r_better - r_worse)."""

    type: Literal["bradley_terry"] = "bradley_terry"
    """By the odds that the better one wins; ties teach nothing."""
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability with which a preference is taken to be the wrong way round."""
    margins: bool = False
    """Subtract a pair's margin from the difference, where the data has one."""
    centre: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (r_better + r_worse)^2, which keeps scores about zero."""


class Ties(Strict):
    """Rao and Kupper's model: a tie is an outcome of its own."""

    type: Literal["ties"]
    """By the odds of winning, losing and a tie."""
    theta: Annotated[float, Field(gt=1)] = 5.0
    """How likely ties are."""


class Unary(Strict):
    """-log sigmoid(r_better) - log sigmoid(-r_worse)."""

    type: Literal["unary"]
    """Each output by itself: the better is good, the worse is not."""


Data = Annotated[ScenesPairs | FilePairs, Field(discriminator="type")]
Loss = Annotated[BradleyTerry | Ties | Unary, Field(discriminator="type")]


class Head(Strict):
    """What makes a score of features."""

    layers: Annotated[int, Field(ge=1, le=4)] = 2
    """Linear layers, with SiLU between them."""
    width: Positive = 64
    """Of the layers between."""


class Fit(Strict):
    """What `plaudit fit` does with this recipe. A step learns from `train.prompts_per_step` pairs; `evaluate.every` and `run`
    count as in training."""

    data: Data = ScenesPairs()
    """What it learns from."""
    trunk: str = "convolution"
    """What looks at a caption and a picture: `convolution`, a small network that is trained too, or a frozen encoder: `lab`,
    `picture`, `clip:NAME`, or `package.module:Class`."""
    head: Head = Head()
    """What makes a score of what was seen."""
    loss: Loss = BradleyTerry()
    """What is minimised."""
    heldout: Fraction = 0.2
    """Share of a file's prompts that are measured on and not learned from; the lab has held-out captions of its own."""
