"""The recipe: one strict model per component. Importing this file imports no torch.

Unknown keys are errors, a value has one home, and the defaults are the vetted default recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Family = Literal["flow", "tokens"]


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


def _check_precision(dtype: str, lora: LoraConfig | None) -> None:
    if lora is None and dtype != "float32":
        raise ValueError(
            f"model.dtype: {dtype} with model.lora null; updates of full tuning are lost in half precision, so give float32, or "
            "adapters, which are trained in float32"
        )


class LabModel(Strict):
    """A small pretrained generator that ships with Plaudit: pictures, or sums with a scratchpad."""

    type: Literal["lab"] = "lab"
    name: Literal["slots", "slots-turbo", "pixels", "sums"] = "slots"
    weights: str | None = None  # another safetensors file with the same architecture
    lora: LoraConfig | None = None

    @property
    def family(self) -> Family:
        return "tokens" if self.name == "sums" else "flow"


class Sd3Model(Strict):
    """Stable Diffusion 3.x through diffusers: a hub name or a local folder."""

    type: Literal["sd3"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    height: Positive = 512
    width: Positive = 512
    max_sequence_length: Positive = 256
    lora: LoraConfig | None = LoraConfig()

    @property
    def family(self) -> Family:
        return "flow"

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> Sd3Model:
        _check_precision(self.dtype, self.lora)
        return self


class TransformersModel(Strict):
    """A causal language model through transformers: a hub name or a local folder."""

    type: Literal["transformers"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: Literal["auto", "always", "never"] = "auto"  # whether prompts go through the tokenizer's chat template
    system: str | None = None  # what a chat begins with
    lora: LoraConfig | None = LoraConfig()

    @property
    def family(self) -> Family:
        return "tokens"

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> TransformersModel:
        _check_precision(self.dtype, self.lora)
        return self


class DottedModel(Strict):
    """Any other FlowModel or TokenModel: `factory` is a dotted path `package.module:callable`, called with `arguments`."""

    type: Literal["custom"]
    factory: str
    arguments: dict[str, Any] = {}
    makes: Family = "flow"
    lora: LoraConfig | None = None

    @property
    def family(self) -> Family:
        return self.makes


Model = Annotated[LabModel | Sd3Model | TransformersModel | DottedModel, Field(discriminator="type")]


# --- what is asked -------------------------------------------------------------------------------------------------


class ScenesPrompts(Strict):
    """Captions of the lab world `scenes`."""

    type: Literal["scenes"] = "scenes"
    categories: tuple[Literal["single", "count", "two", "relation", "counttwo", "three"], ...] = Field(
        default=("single", "count", "two", "relation", "counttwo", "three"), min_length=1
    )


class SumsPrompts(Strict):
    """Problems of the lab world `sums`; no categories means all of them. `problems` keeps training to so many fixed ones.
    `answers` brings solutions to learn from: pairs of a right and a wrong one, a share `noise` of them swapped, or
    demonstrations as the model was pretrained on."""

    type: Literal["sums"]
    categories: tuple[str, ...] | None = Field(default=None, min_length=1)
    problems: Positive | None = None
    answers: Literal["none", "pairs", "demonstrations"] = "none"
    noise: Fraction = 0.0


class PuzzlePrompts(Strict):
    """Puzzles of a reasoning-gym task, whose scorer is the reward `reasoning_gym`. `config` is the task's own."""

    type: Literal["puzzles"]
    task: str
    config: dict[str, Any] = {}
    instruction: str | None = None  # what is asked of the answer; null = an answer between tags
    train: Positive = 2_000
    heldout: Positive = 500


class FilePrompts(Strict):
    """A text file (one prompt a line) or JSONL: `text` and optional `id`, `facts`, `inputs`; or the columns of TRL: `prompt`
    (a text or messages), `prompt`, `chosen` and `rejected`, `prompt` and `completion`, or `messages`."""

    type: Literal["file"]
    train: str
    heldout: str | None = None


Prompts = Annotated[ScenesPrompts | SumsPrompts | PuzzlePrompts | FilePrompts, Field(discriminator="type")]


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


# --- from scores to a loss -----------------------------------------------------------------------------------------


class Shaping(Strict):
    """Scores to advantages. `floor` is the smallest standard deviation divided by, in reward units. `normalise` the total,
    or each reward in its groups before they are added by their weights."""

    normalise: Literal["total", "each"] = "total"
    std: Literal["group", "batch", "none", "loo"] = "group"
    floor: PositiveFloat = 1e-3
    clip: PositiveFloat | None = 5.0


class KlConfig(Strict):
    """KL to the reference policy. `exact` is that of a whole decision: of the Gaussian transition, or over the vocabulary;
    `mean` and `flow_grpo` are published scalings of the Gaussian one. `k2` and `k3` are estimates from the decisions drawn,
    as is `k1`, which has no useful gradient and can only be taken from the reward."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    scaling: Literal["exact", "mean", "flow_grpo", "k1", "k2", "k3"] = "exact"
    place: Literal["loss", "reward"] = "loss"

    @model_validator(mode="after")
    def _has_gradient(self) -> KlConfig:
        if (self.scaling == "k1") != (self.place == "reward"):
            raise ValueError(
                f"objective.kl.scaling: {self.scaling} with place {self.place}; the gradient of k1 is zero on average, so "
                "k1 goes with place reward, and the others with place loss"
            )
        return self


class GrpoConfig(Strict):
    """Clipped likelihood ratio over the decisions of a rollout: denoising steps (Flow-GRPO) or tokens. Names as in TRL:
    `importance_sampling_level` sequence is GSPO's ratio; `loss_type` says what the sum over decisions is divided by: dapo all
    decisions, grpo each sample's own and then all samples, dr_grpo the longest possible, luspo the samples only."""

    type: Literal["grpo"]
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    importance_sampling_level: Literal["token", "sequence"] = "token"
    loss_type: Literal["dapo", "grpo", "dr_grpo", "luspo"] = "dapo"
    density: Literal["exact", "mean", "flow_grpo", "cps"] = "exact"  # of flow models
    kl: KlConfig = KlConfig()


class DrpoConfig(Strict):
    """DRPO: a preference re-weighs the right answers among themselves, wrong ones are a contrast, and KL has a barrier.
    `correct` and `prefer` name rewards."""

    type: Literal["drpo"]
    correct: str
    prefer: str
    temperature: PositiveFloat = 0.1  # lambda
    contrast_temperature: PositiveFloat = 10.0  # tau
    barrier: Annotated[float, Field(ge=0)] = 1e3
    margin: Annotated[float, Field(ge=0)] = 1e-4


class LikelihoodConfig(Strict):
    """The likelihood of a reference answer after the drawn reasoning, as reward and by its own gradient."""

    type: Literal["likelihood"]
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    reward: str  # which of the recipe's rewards is the policy's own likelihood
    direct: Annotated[float, Field(ge=0)] = 1.0  # weight of the reward's own gradient
    kl: KlConfig = KlConfig()

    @model_validator(mode="after")
    def _kl_in_loss(self) -> LikelihoodConfig:
        if self.kl.place != "loss":
            raise ValueError(
                "objective.kl.place: reward with objective likelihood, which adds it to the loss; use loss"
            )
        return self


class DpoConfig(Strict):
    """DPO on pairs `chosen` and `rejected`. `sft_weight` adds the likelihood of the chosen answer (RPO: eta beta on the sum)."""

    type: Literal["dpo"]
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    sft_reduction: Literal["sum", "mean"] = "sum"


class SftConfig(Strict):
    """Likelihood of given completions, or with `keep` of the model's own that scored well: the `best` of each group, or all
    that reach `threshold`."""

    type: Literal["sft"]
    keep: Literal["given", "best", "threshold"] = "given"
    threshold: float | None = None

    @model_validator(mode="after")
    def _threshold(self) -> SftConfig:
        if (self.keep == "threshold") != (self.threshold is not None):
            raise ValueError(
                f"objective.threshold: {self.threshold} with keep {self.keep}; keep threshold needs it, only"
            )
        return self


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


Objective = Annotated[
    GrpoConfig | NftConfig | DrpoConfig | LikelihoodConfig | DpoConfig | SftConfig, Field(discriminator="type")
]
GIVEN = "given"  # an objective that learns from data instead of samples of its own


def learns_from_data(objective: Objective) -> bool:
    return isinstance(objective, DpoConfig) or (isinstance(objective, SftConfig) and objective.keep == GIVEN)


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
    refill: Annotated[int, Field(ge=0)] = 0  # rounds of new prompts in place of groups whose scores are all equal
    ratio_tolerance: PositiveFloat = 1e-6  # times the square root of the latent's dimensions, or 100 for tokens
    mismatch_kl: PositiveFloat = 1e-3  # largest mean KL between drawing and replay

    @model_validator(mode="after")
    def _possible(self) -> Train:
        batch = self.prompts_per_step * self.samples_per_prompt
        if self.steps is None and self.minutes is None and self.network_calls is None:
            raise ValueError("train: give `steps`, `minutes` or `network_calls`, or the run would never end")
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
    sampler: AnyEvaluationSampler = EvaluationSampler()

    @model_validator(mode="after")
    def _plain(self) -> Evaluation:
        if self.reward.weight != 1.0 or self.reward.calibrate is not None:
            raise ValueError(
                "evaluate.reward: the truth is reported as it is, without `weight` or `calibrate`; leave them out"
            )
        return self


class Search(Strict):
    """What `plaudit search` does with this recipe: a method, its options, and the budget of each prompt."""

    method: str = "best_of_n"
    budget: str = "200nfe"  # 200nfe (network calls), 64rewards, 30s; several with commas between
    options: dict[str, Any] = {}


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
    sampler: AnySampler = Sampler()
    shaping: Shaping = Shaping()
    objective: Objective = NftConfig()
    train: Train = Train(minutes=5.0)
    evaluate: Evaluation = Evaluation()
    search: Search = Search()
    run: Run = Run()

    @model_validator(mode="after")
    def _combinable(self) -> Recipe:
        if not self.rewards:
            raise ValueError("rewards: name at least one reward, for example `match: {type: scene_match}`")
        if self.train.samples_per_prompt < 2 and not learns_from_data(self.objective):
            raise ValueError("train.samples_per_prompt: 1 sample has no group to be compared with; use at least 2")
        if isinstance(self.sampler, Sampler):
            _check_steps(self.sampler, self.objective)
        _check_updates(self.train, self.objective)
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Recipe:
        """What would have no effect is refused."""
        if self.shaping.normalise == "each" and (self.combine is not None or self.missing.impute is not None):
            raise ValueError(
                "shaping.normalise: each adds the rewards by their weights, so `combine` and `missing.impute`, which speak of "
                "the total, would have no effect; leave them out, or use normalise total"
            )
        if not learns_from_data(self.objective):
            return self
        if self.train.refill or self.shaping != Shaping():
            raise ValueError(
                f"objective.type: {self.objective.type} learns from data, where there are no groups; leave train.refill and "
                "shaping out"
            )
        if self.train.steps is None and self.train.minutes is None:
            raise ValueError(
                f"train.network_calls: objective {self.objective.type} draws nothing, so the run would never end; give steps or "
                "minutes"
            )
        return self

    @model_validator(mode="after")
    def _one_family(self) -> Recipe:
        """A model, its samplers and its objective belong together."""
        family, tokens = self.model.family, isinstance(self.sampler, TokenSampling)
        for key, sampler in (("sampler", self.sampler), ("evaluate.sampler", self.evaluate.sampler)):
            if sampler.type != family:
                raise ValueError(
                    f"{key}.type: {sampler.type} for a model of family {family}; set {key}.type to {family}"
                    + (", or start from the recipe sums-grpo" if family == "tokens" else "")
                )
        flow_only = ("nft",)
        token_only = ("drpo", "likelihood", "dpo", "sft")
        if self.objective.type in (flow_only if tokens else token_only):
            raise ValueError(
                f"objective.type: {self.objective.type} does not train models of family {family}; allowed: grpo, "
                + ", ".join(token_only if tokens else flow_only)
            )
        if isinstance(self.sampler, TokenSampling) and not learns_from_data(self.objective):
            _check_exact(self.sampler)
        if tokens and self.evaluate.reward.type.startswith("scene_"):
            raise ValueError(
                f"evaluate.reward: {self.evaluate.reward.type} looks at pictures, and this model writes texts; name a reward for "
                "texts (`plaudit rewards list --kind text`)"
            )
        if tokens and isinstance(self.objective, GrpoConfig) and self.objective.density != "exact":
            raise ValueError(
                f"objective.density: {self.objective.density} belongs to Gaussian steps; tokens have exact"
            )
        for key, name in _rewards_of(self.objective).items():
            if name not in self.rewards:
                raise ValueError(
                    f"objective.{key}: {name!r} is no reward of this recipe; rewards: {', '.join(self.rewards)}"
                )
        kl = self.objective.kl if isinstance(self.objective, GrpoConfig | LikelihoodConfig) else KlConfig()
        if tokens and kl.scaling in ("mean", "flow_grpo"):
            raise ValueError(
                f"objective.kl.scaling: {kl.scaling} belongs to Gaussian steps; for tokens: exact, k1, k2, k3"
            )
        return self


def _rewards_of(objective: Objective) -> dict[str, str]:
    """The rewards that an objective reads by name, by its key."""
    match objective:
        case DrpoConfig():
            return {"correct": objective.correct, "prefer": objective.prefer}
        case LikelihoodConfig():
            return {"reward": objective.reward}
    return {}


def _check_exact(sampler: TokenSampling) -> None:
    """A ratio needs the probability of what was drawn under both policies, and a cut distribution has other tokens in each."""
    if sampler.top_k is not None or sampler.top_p < 1 or sampler.temperature == 0:
        raise ValueError(
            f"sampler: temperature {sampler.temperature:g}, top_k {sampler.top_k}, top_p {sampler.top_p:g}; training needs every "
            "token possible: temperature above 0, top_k null, top_p 1 (evaluate.sampler may have others)"
        )


def _check_updates(train: Train, objective: Objective) -> None:
    """What is learned from row by row, or in whole groups, has no more pieces than there are prompts."""
    rows, updates = train.prompts_per_step, train.updates_per_step
    groups = isinstance(objective, DrpoConfig) or (isinstance(objective, SftConfig) and objective.keep == "best")
    if (learns_from_data(objective) and rows % updates) or (groups and updates > rows):
        allowed = "a divisor of" if learns_from_data(objective) else "at most"
        raise ValueError(
            f"train.updates_per_step: {updates} for objective {objective.type}, which learns from train.prompts_per_step "
            f"{rows} {'groups' if groups else 'rows'}; use {allowed} {rows}"
        )


def _check_steps(sampler: Sampler, objective: Objective) -> None:
    if sampler.kernel in ("cps", "ddim_eta") and sampler.level > 1:
        raise ValueError(f"sampler.level: {sampler.level} for {sampler.kernel}, whose levels lie in [0, 1]")
    if objective.type == "grpo" and sampler.steps < 2:
        raise ValueError(
            "sampler.steps: 1 leaves objective grpo nothing to train, the last step is deterministic; use 2"
        )
    if objective.type == "grpo" and not (sampler.kernel != "ode" and sampler.level > 0):
        raise ValueError(
            "objective.type grpo needs stochastic steps: set sampler.kernel to flow_sde, constant_eta, cps or "
            f"ddim_eta and sampler.level above 0 (now kernel {sampler.kernel}, level {sampler.level}), "
            "or use objective.type nft, which needs none"
        )
    first, last = sampler.window.start
    size = sampler.window.size or 1
    if first > last or last + size > max(sampler.steps - 1, 1):
        raise ValueError(
            f"sampler.window: {size} steps starting in [{first}, {last}] do not fit; of {sampler.steps} steps "
            f"the last is always deterministic, so start must lie in [0, {max(sampler.steps - 1 - size, 0)}]"
        )
