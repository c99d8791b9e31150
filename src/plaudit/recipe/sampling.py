"""How samples are drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plaudit.recipe.base import Dotted, Positive, PositiveFloat, Strict


class Window(Strict):
    """Which steps are stochastic."""

    size: Positive | None = None
    """How many steps in a row; null = all."""
    start: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """First and last step that they may begin at; drawn once for a group."""


class Balance(Strict):
    """How the levels of `level_schedule: balanced` are found."""

    samples: Positive = 48
    """Rollouts of a round."""
    rounds: Positive = 20
    """How often every step's level moves."""
    move: PositiveFloat = 0.01
    """By how much."""
    tolerance: Positive = 2
    """A step whose rising and falling rollouts differ in number by less gets more noise, any other one less."""


class Sampler(Strict):
    """How rollouts are drawn and replayed. Level 0 of every kernel is the stock ODE sampler."""

    type: Literal["flow"] = "flow"
    """Pictures of a flow or diffusion model."""
    steps: Positive = 10
    """Steps from noise to picture."""
    kernel: Literal["ode", "flow_sde", "constant_eta", "cps", "ddim_eta"] | Dotted = "ode"
    """How a step is made: without noise, as in Flow-GRPO, DanceGRPO, FlowCPS or DDPO, or by a function of your own at
    `package.module:kernel` (docs/objectives.md)."""
    level: Annotated[float, Field(ge=0)] = 0.7
    """How much noise a step adds, in the kernel's own measure; for cps and ddim_eta at most 1."""
    level_schedule: Literal["constant", "cosine", "balanced"] = "constant"
    """The level at every step; a cosine from `level` down to `level_min`; or found before training and then kept (DenseGRPO, with
    kernel constant_eta): beginning at `level`, as much as leaves a step as likely to gain as to lose."""
    balance: Balance = Balance()
    """How `balanced` finds its levels."""
    level_min: Annotated[float, Field(ge=0)] = 0.0
    """Where the cosine ends."""
    window: Window = Window()
    """Which steps are stochastic, and trained."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance; 1 = none."""
    shift: PositiveFloat | None = None
    """Bends the steps toward noise; null = the model's own schedule."""
    same_noise: bool = False
    """One initial noise for the whole group."""
    tile: Positive = 64
    """Samples in one network call."""


class EvaluationSampler(Strict):
    """How held-out pictures are drawn: always deterministic."""

    type: Literal["flow"] = "flow"
    """Pictures of a flow or diffusion model."""
    steps: Positive = 10
    """Steps from noise to picture."""
    solver: Literal["euler", "heun"] = "euler"
    """One network call for each step, or two for a closer path."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance; 1 = none."""
    shift: PositiveFloat | None = None
    """Bends the steps toward noise; null = the model's own schedule."""
    tile: Positive = 64
    """Samples in one network call."""


class TokenSampling(Strict):
    """How completions are drawn. Log-probabilities are those of the tempered distribution."""

    type: Literal["tokens"]
    """Texts of a token model."""
    max_new_tokens: Positive = 96
    """Longest completion."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """What logits are divided by; 0 takes the likeliest token."""
    top_k: Positive | None = None
    """Only this many likeliest tokens; null = all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the fewest likeliest tokens that hold this much probability."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the model's own end."""
    tile: Positive = 64
    """Samples in one network call."""
    pack: Annotated[int, Field(ge=0)] = 256
    """Columns in a row that a prompt's samples share in replay; 0 = a row each."""


AnySampler = Annotated[Sampler | TokenSampling, Field(discriminator="type")]
AnyEvaluationSampler = Annotated[EvaluationSampler | TokenSampling, Field(discriminator="type")]
