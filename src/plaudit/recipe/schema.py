"""The recipe: one strict model per component. Importing this file imports no torch.

Unknown keys are errors, a value has one home, and the defaults are the vetted default recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


# --- what generates ------------------------------------------------------------------------------------------------


class LoraConfig(Strict):
    """Train low-rank adapters instead of all parameters. `targets` are module-name endings, as peft reads them."""

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    targets: tuple[str, ...] | Literal["auto"] = "auto"


class LabModel(Strict):
    """A small pretrained generator that ships with Plaudit."""

    type: Literal["lab"] = "lab"
    name: Literal["slots", "pixels"] = "slots"
    weights: str | None = None  # another safetensors file with the same architecture
    lora: LoraConfig | None = None


class Sd3Model(Strict):
    """Stable Diffusion 3.x through diffusers: a hub name or a local folder."""

    type: Literal["sd3"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    height: Positive = 512
    width: Positive = 512
    max_sequence_length: Positive = 256
    lora: LoraConfig | None = LoraConfig()


class DottedModel(Strict):
    """Any other FlowModel: `factory` is a dotted path `package.module:callable`, called with `arguments`."""

    type: Literal["custom"]
    factory: str
    arguments: dict[str, Any] = {}
    lora: LoraConfig | None = None


Model = Annotated[LabModel | Sd3Model | DottedModel, Field(discriminator="type")]


# --- what is asked -------------------------------------------------------------------------------------------------


class ScenesPrompts(Strict):
    """Captions of the lab world `scenes`."""

    type: Literal["scenes"] = "scenes"
    categories: tuple[Literal["single", "count", "two", "relation", "counttwo", "three"], ...] = Field(
        default=("single", "count", "two", "relation", "counttwo", "three"), min_length=1
    )


class FilePrompts(Strict):
    """A text file (one prompt a line) or JSONL with `text` and optional `id`, `facts`, `inputs`."""

    type: Literal["file"]
    train: str
    heldout: str | None = None


Prompts = Annotated[ScenesPrompts | FilePrompts, Field(discriminator="type")]


# --- what scores ---------------------------------------------------------------------------------------------------


class Zscore(Strict):
    """Minus the mean, divided by the standard deviation: those given, or those of the untrained model's outputs."""

    type: Literal["zscore"]
    mean: float | None = None
    std: PositiveFloat | None = None


class MinMax(Strict):
    """`low` becomes 0 and `high` 1; what is not given is the least and the largest score of the untrained model."""

    type: Literal["minmax"]
    low: float | None = None
    high: float | None = None


class Quantile(Strict):
    """The share of the untrained model's outputs that score less (ties count half)."""

    type: Literal["quantile"]


class ReferenceScale(Strict):
    """Minus the mean, divided by the deviation, both from the reference on the reward's card."""

    type: Literal["reference"]


Calibrate = Annotated[Zscore | MinMax | Quantile | ReferenceScale, Field(discriminator="type")]


class RewardConfig(Strict):
    """One reward: a name of the built-in table or a dotted path `package.module:thing`, and how it is called."""

    type: str
    weight: float = 1.0
    arguments: dict[str, Any] = {}
    calibrate: Calibrate | None = None
    batch: Positive | None = None  # outputs per call; null = all at once
    concurrency: Positive = 1  # calls at a time
    deadline_s: PositiveFloat | None = None  # of one call
    retries: Annotated[int, Field(ge=0)] = 0  # of outputs that failed or came too late
    retry_budget: Fraction = 0.2  # the largest share of outputs that may be repeats
    cache: bool = False  # keep scores on disk, by content
    python: str | None = None  # the interpreter of another environment to run it in


class Missing(Strict):
    """What to do with scores that are absent. They are never counted as zero."""

    on_missing: Literal["drop", "fail", "impute"] = "drop"
    impute: float | None = None  # the total that a missing one counts as, with on_missing impute
    max_missing_fraction: Fraction = 0.05

    @model_validator(mode="after")
    def _one_way(self) -> Missing:
        if (self.on_missing == "impute") != (self.impute is not None):
            raise ValueError(
                f"missing.impute: {self.impute} with on_missing {self.on_missing}; on_missing impute needs the number that "
                "stands for a missing total, the others need none"
            )
        return self


# --- how samples are drawn -----------------------------------------------------------------------------------------


class Window(Strict):
    """Which steps are stochastic: `size` consecutive ones starting in `start` (drawn once per group); null = all."""

    size: Positive | None = None
    start: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)


class Sampler(Strict):
    """How rollouts are drawn and replayed. Level 0 of every kernel is the stock ODE sampler."""

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

    steps: Positive = 10
    solver: Literal["euler", "heun"] = "euler"
    guidance: Annotated[float, Field(ge=0)] = 1.0
    shift: PositiveFloat | None = None
    tile: Positive = 64


# --- from scores to a loss -----------------------------------------------------------------------------------------


class Shaping(Strict):
    """Scores to advantages. `floor` is the smallest standard deviation divided by, in reward units."""

    std: Literal["group", "batch", "none", "loo"] = "group"
    floor: PositiveFloat = 1e-3
    clip: PositiveFloat | None = 5.0


class KlConfig(Strict):
    """KL of the transition to the reference policy. `exact` is the Gaussian KL; the others are published scalings."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    scaling: Literal["exact", "mean", "flow_grpo"] = "exact"


class GrpoConfig(Strict):
    """Flow-GRPO: clipped ratio over the stochastic steps."""

    type: Literal["grpo"]
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    density: Literal["exact", "mean", "flow_grpo", "cps"] = "exact"
    kl: KlConfig = KlConfig()


class NftConfig(Strict):
    """DiffusionNFT: forward process, positive and negative branch around an old policy that is an average."""

    type: Literal["nft"] = "nft"
    beta: PositiveFloat = 1.0
    advantage_clip: PositiveFloat = 5.0  # advantage +-clip maps to optimality probability 1 or 0
    times_per_sample: Positive = 2
    time_range: tuple[Fraction, Fraction] = (0.0, 1.0)
    time_shift: PositiveFloat = 1.0
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    old_decay_max: Fraction = 0.5
    old_decay_rate: Fraction = 1e-3


Objective = Annotated[GrpoConfig | NftConfig, Field(discriminator="type")]


# --- the loop ------------------------------------------------------------------------------------------------------


class Train(Strict):
    """Batch vocabulary: a step draws `prompts_per_step` x `samples_per_prompt` samples, learns from them in
    `updates_per_step` optimiser updates, each accumulated over micro-batches of `micro_batch` samples."""

    steps: Positive | None = None
    minutes: PositiveFloat | None = None  # stop after this much wall clock, whichever comes first
    network_calls: Positive | None = None  # stop after this many samples x network evaluations
    prompts_per_step: Positive = 12
    samples_per_prompt: Positive = 16
    updates_per_step: Positive = 1
    micro_batch: Positive = 64
    lr: PositiveFloat = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: PositiveFloat = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0 = the trained weights are the result
    ratio_tolerance: PositiveFloat = 1e-6  # times the square root of the latent's dimensions where a density sums them

    @model_validator(mode="after")
    def _possible(self) -> Train:
        batch = self.prompts_per_step * self.samples_per_prompt
        if self.steps is None and self.minutes is None and self.network_calls is None:
            raise ValueError("train: give `steps`, `minutes` or `network_calls`, or the run would never end")
        if self.samples_per_prompt < 2:
            raise ValueError("train.samples_per_prompt: 1 sample has no group to be compared with; use at least 2")
        if batch % self.updates_per_step:
            possible = [n for n in range(1, batch + 1) if batch % n == 0]
            nearest = sorted(possible, key=lambda n: abs(n - self.updates_per_step))[:3]
            raise ValueError(
                f"train.updates_per_step: {batch} samples (prompts_per_step {self.prompts_per_step} x "
                f"samples_per_prompt {self.samples_per_prompt}) cannot be split into {self.updates_per_step} equal "
                f"updates; nearest that can: {', '.join(map(str, sorted(nearest)))}"
            )
        return self


class Evaluation(Strict):
    """Held-out measurement, at fixed prompts and fixed noise."""

    reward: RewardConfig = RewardConfig(type="scene_exact")
    every: Positive = 20
    prompts: Positive = 192  # during the run
    final_prompts: Positive = 600  # before and after
    sampler: EvaluationSampler = EvaluationSampler()

    @model_validator(mode="after")
    def _plain(self) -> Evaluation:
        if self.reward.weight != 1.0 or self.reward.calibrate is not None:
            raise ValueError(
                "evaluate.reward: the truth is reported as it is, without `weight` or `calibrate`; leave them out"
            )
        return self


class Run(Strict):
    """Where results go."""

    folder: str = "runs"
    name: str | None = None  # null = made from the recipe's name
    seed: Annotated[int, Field(ge=0)] = 0
    save_every: Positive = 20
    keep_checkpoints: Positive = 2
    threads: Positive | None = None  # CPU threads; null = all cores


class Recipe(Strict):
    """Everything `plaudit align` needs to know."""

    name: str = "default"
    system: str | None = None  # S001..S129 when the recipe reproduces a published system
    summary: str = ""
    model: Model = LabModel()
    prompts: Prompts = ScenesPrompts()
    rewards: dict[str, RewardConfig] = {"match": RewardConfig(type="scene_match")}
    combine: str | None = (
        None  # a formula over the rewards, for example `match * clip(sharp, 0, 1)`; null = weighted sum
    )
    calibration_outputs: Positive = 256  # held-out outputs of the untrained model that `calibrate` measures
    missing: Missing = Missing()
    sampler: Sampler = Sampler()
    shaping: Shaping = Shaping()
    objective: Objective = NftConfig()
    train: Train = Train(minutes=5.0)
    evaluate: Evaluation = Evaluation()
    run: Run = Run()

    @model_validator(mode="after")
    def _combinable(self) -> Recipe:
        if not self.rewards:
            raise ValueError("rewards: name at least one reward, for example `match: {type: scene_match}`")
        if self.sampler.kernel in ("cps", "ddim_eta") and self.sampler.level > 1:
            raise ValueError(
                f"sampler.level: {self.sampler.level} for {self.sampler.kernel}, whose levels lie in [0, 1]"
            )
        if self.objective.type == "grpo" and self.sampler.steps < 2:
            raise ValueError(
                "sampler.steps: 1 leaves objective grpo nothing to train, the last step is deterministic; use 2"
            )
        stochastic = self.sampler.kernel != "ode" and self.sampler.level > 0
        if self.objective.type == "grpo" and not stochastic:
            raise ValueError(
                "objective.type grpo needs stochastic steps: set sampler.kernel to flow_sde, constant_eta, cps or "
                f"ddim_eta and sampler.level above 0 (now kernel {self.sampler.kernel}, level {self.sampler.level}), "
                "or use objective.type nft, which needs none"
            )
        first, last = self.sampler.window.start
        size = self.sampler.window.size or 1
        if first > last or last + size > max(self.sampler.steps - 1, 1):
            raise ValueError(
                f"sampler.window: {size} steps starting in [{first}, {last}] do not fit; of {self.sampler.steps} steps "
                f"the last is always deterministic, so start must lie in [0, {max(self.sampler.steps - 1 - size, 0)}]"
            )
        return self
