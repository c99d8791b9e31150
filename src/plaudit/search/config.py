"""How a search samples: what the command line and `plaudit.search` let a user choose. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plaudit.recipe.base import Positive, PositiveFloat, Strict


class SearchSampler(Strict):
    """What is None comes from the recipe: steps, guidance, shift, solver and tile from `evaluate.sampler`, so that a plain
    sample is what an evaluation draws; kernel and level of the methods' stochastic steps from `sampler`."""

    steps: Positive | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    shift: PositiveFloat | None = None
    solver: Literal["euler", "heun"] | None = None
    kernel: Literal["flow_sde", "constant_eta", "cps", "ddim_eta"] | None = None
    level: Annotated[float, Field(ge=0)] | None = None
    tile: Positive | None = None
