"""How samples are drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plaudit.recipe.base import Positive, PositiveFloat, Strict


class Window(Strict):
    """Which steps are stochastic: `size` consecutive ones starting in `start` (drawn once per group); null = all."""

    size: Positive | None = None
    start: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)


class Sampler(Strict):
    """How rollouts are drawn and replayed. Level 0 of every kernel is the stock ODE sampler."""

    type: Literal["flow"] = "flow"
    steps: Positive = 10
    kernel: Literal["ode", "flow_sde", "constant_eta", "cps", "ddim_eta"] = "ode"
    level: Annotated[float, Field(ge=0)] = 0.7
    level_schedule: Literal["constant", "cosine"] = "constant"
    level_min: Annotated[float, Field(ge=0)] = 0.0  # where the cosine schedule ends
    window: Window = Window()
    guidance: Annotated[float, Field(ge=0)] = 1.0
    shift: PositiveFloat | None = None  # null = the model's own schedule
    same_noise: bool = False  # one initial noise for the whole group
    tile: Positive = 64  # samples in one network call


class EvaluationSampler(Strict):
    """How held-out pictures are drawn: always deterministic."""

    type: Literal["flow"] = "flow"
    steps: Positive = 10
    solver: Literal["euler", "heun"] = "euler"
    guidance: Annotated[float, Field(ge=0)] = 1.0
    shift: PositiveFloat | None = None
    tile: Positive = 64


class TokenSampling(Strict):
    """How completions are drawn. Temperature 0 is greedy. Log-probabilities are those of the tempered distribution."""

    type: Literal["tokens"]
    max_new_tokens: Positive = 96
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop: tuple[str, ...] = ()  # texts that end a completion, besides the model's own end
    tile: Positive = 64  # samples in one network call
    pack: Annotated[int, Field(ge=0)] = (
        256  # columns in a row where a prompt's samples share it in replay; 0 = a row each
    )


AnySampler = Annotated[Sampler | TokenSampling, Field(discriminator="type")]
AnyEvaluationSampler = Annotated[EvaluationSampler | TokenSampling, Field(discriminator="type")]
