"""From scores to a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from plaudit.recipe.base import Fraction, Positive, PositiveFloat, Strict
from plaudit.recipe.models import Family

Feed = Literal["rollouts", "pairs", "demonstrations", "prompts"]
Families = tuple[Family, ...]
BOTH: Families = ("flow", "tokens")

# What published scalings of a Gaussian step's log-density and KL compute, for the kernels that they were published for.
DENSITIES = {"flow_grpo": {"flow_sde": "mean", "cps": "distance"}, "cps": {"cps": "distance"}}
KLS = {"flow_grpo": {"flow_sde": "without_dt", "cps": "mean"}, "cps": {"cps": "distance"}}


class Shaping(Strict):
    """Scores to advantages: the distance of each score to its group's mean, in deviations."""

    normalise: Literal["total", "each"] = "total"
    """What becomes an advantage: the total, or each reward in its groups before they are added by their weights."""
    std: Literal["group", "batch", "global", "pooled", "none", "loo"] = "group"
    """What is divided by: the group's deviation, that of all scores as in TRL (`batch`) or in flow_grpo's global_std (`global`),
    that of all scores around their groups' means (`pooled`), or nothing (`loo`: the mean of the others is the baseline)."""
    floor: PositiveFloat = 1e-3
    """Smallest deviation divided by, in reward units."""
    clip: PositiveFloat | None = None
    """Largest advantage, in deviations (5 in flow_grpo); null = no limit, as always with std none and loo."""

    @model_validator(mode="after")
    def _clip_counts_deviations(self) -> Shaping:
        """In reward units a clip would mean something else for every reward, and bias leave-one-out."""
        if self.clip is not None and self.std in ("none", "loo"):
            raise ValueError(
                f"shaping.clip: {self.clip:g} with std {self.std}, which divides by no deviation that a clip could count; set "
                "clip to null, or std to group, batch, global or pooled"
            )
        return self


class KlConfig(Strict):
    """KL to the reference policy."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """What the KL is multiplied by."""
    scaling: Literal["exact", "mean", "flow_grpo", "cps", "k1", "k2", "k3"] = "exact"
    """`exact` is that of a whole decision: of the Gaussian step, or over the vocabulary; `mean`, `flow_grpo` and `cps` are
    scalings of the Gaussian one; k1, k2, k3 are estimates from the decisions drawn (docs/conventions.md)."""
    place: Literal["loss", "reward"] = "loss"
    """Added to the loss, or (k1 only, whose gradient is zero on average) taken from the reward."""

    @model_validator(mode="after")
    def _has_gradient(self) -> KlConfig:
        if (self.scaling == "k1") != (self.place == "reward"):
            raise ValueError(
                f"objective.kl.scaling: {self.scaling} with place {self.place}; the gradient of k1 is zero on average, so "
                "k1 goes with place reward, and the others with place loss"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective asks of a run. The recipe, the loop and the doctor ask here and know no objective by its name."""

    families: Families = BOTH
    feed: Feed = "rollouts"
    whole_groups: bool = False
    """Whether the samples of a group must be learned from in one update."""
    scored: bool = False
    """Whether every given output must have a score."""
    stochastic: bool = False
    """Whether a flow model must be drawn with steps that have a density."""
    density: str = "exact"
    """In which scaling the density of a flow model's steps is recorded."""
    kl: KlConfig | None = None
    """The KL to the reference that the objective has of its own."""
    credit: tuple[str, ...] = ("sample",)
    """What it can be credited by: samples, their decisions, or places of a picture."""
    rewards: Mapping[str, str] = field(default_factory=dict)
    """Rewards of the recipe that the objective reads, by its key that names them."""

    def __post_init__(self) -> None:
        families = self.families if isinstance(self.families, tuple) else (self.families,)
        if not families or set(families) - set(BOTH):
            raise ValueError(f"Needs.families is {self.families!r}; it must be a tuple of {', '.join(BOTH)}")
        if self.feed not in get_args(Feed):
            raise ValueError(f"Needs.feed is {self.feed!r}; allowed: {', '.join(get_args(Feed))}")
        if not isinstance(self.rewards, Mapping):
            raise ValueError(
                f"Needs.rewards is {self.rewards!r}; it must be a mapping, for example {{'reward': 'match'}}"
            )


class GrpoConfig(Strict):
    """Clipped likelihood ratio over the decisions of a rollout: denoising steps (Flow-GRPO) or tokens. Names as in TRL."""

    families: ClassVar[Families] = BOTH
    type: Literal["grpo"]
    """Clipped likelihood ratio."""
    clip_low: PositiveFloat = 0.2
    """How far below 1 the ratio still counts."""
    clip_high: PositiveFloat = 0.2
    """How far above 1 the ratio still counts."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """A ratio for each decision, or one for a whole sample (GSPO)."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "luspo"] = "dapo"
    """What the sum over decisions is divided by: dapo all decisions, grpo each sample's own and then all samples, dr_grpo the
    longest possible, luspo the samples only."""
    zero_advantage: Literal["keep", "drop"] = "keep"
    """Samples of advantage 0, as in groups of equal scores: kept in the divisor and the KL (TRL), or left out (flow_grpo)."""
    density: Literal["exact", "mean", "flow_grpo", "cps"] = "exact"
    """Log-density of a flow's step in the ratio, to which the clip range belongs: exact, or a scaling of it
    (docs/conventions.md)."""
    kl: KlConfig = KlConfig()
    """KL to the reference policy."""

    @property
    def needs(self) -> Needs:
        return Needs(stochastic=True, density=self.density, kl=self.kl, credit=("sample", "decision"))


class DrpoConfig(Strict):
    """DRPO: a preference re-weighs the right answers among themselves, wrong ones are a contrast, and KL has a barrier."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["drpo"]
    """Decoupled reward policy optimisation."""
    correct: str
    """The reward that says 1 for right and 0 for wrong."""
    prefer: str
    """The reward by which right answers are weighed against each other."""
    temperature: PositiveFloat = 0.1
    """lambda: how softly the preference weighs."""
    contrast_temperature: PositiveFloat = 10.0
    """tau: how softly the likeliest wrong answers are singled out."""
    barrier: Annotated[float, Field(ge=0)] = 1e3
    """Strength of the barrier on the KL."""
    margin: Annotated[float, Field(ge=0)] = 1e-4
    """KL up to which the barrier does nothing."""

    @property
    def needs(self) -> Needs:
        rewards = {"correct": self.correct, "prefer": self.prefer}
        return Needs(families=self.families, whole_groups=True, rewards=rewards)


class LikelihoodConfig(Strict):
    """The likelihood of a reference answer after the drawn reasoning, as reward and by its own gradient."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["likelihood"]
    """Likelihood of a reference answer."""
    clip_low: PositiveFloat = 0.2
    """How far below 1 the ratio of the reasoning still counts."""
    clip_high: PositiveFloat = 0.2
    """How far above 1 the ratio of the reasoning still counts."""
    reward: str
    """Which of the recipe's rewards is the policy's own likelihood."""
    direct: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward's own gradient."""
    kl: KlConfig = KlConfig()
    """KL to the reference policy."""

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, kl=self.kl, rewards={"reward": self.reward})

    @model_validator(mode="after")
    def _kl_in_loss(self) -> LikelihoodConfig:
        if self.kl.place != "loss":
            raise ValueError(
                "objective.kl.place: reward with objective likelihood, which adds it to the loss; use loss"
            )
        return self


class DpoConfig(Strict):
    """DPO on pairs `chosen` and `rejected`."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["dpo"]
    """Direct preference optimisation."""
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference: the loss is -log sigma(beta margin)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The chance that a pair's labels are swapped, as in conservative DPO (TRL's loss `robust` divides by 1 - 2s besides)."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's likelihood beside it (RPO's eta)."""
    sft_reduction: Literal["sum", "mean"] = "sum"
    """That likelihood's form: beta times the sum over tokens, or the mean over them."""

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, feed="pairs")


class SftConfig(Strict):
    """Likelihood of given completions, or with `keep` of the model's own that scored well: the `best` of each group, or all
    that reach `threshold`."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["sft"]
    """Supervised fine-tuning, or rejection-sampling fine-tuning."""
    keep: Literal["given", "best", "threshold"] = "given"
    """Which completions are learned from: the given ones, each group's best, or those that score at least `threshold`."""
    threshold: float | None = None
    """Smallest score that is kept, for keep threshold only."""

    @property
    def needs(self) -> Needs:
        feed: Feed = "demonstrations" if self.keep == "given" else "rollouts"
        return Needs(families=self.families, feed=feed, whole_groups=self.keep == "best")

    @model_validator(mode="after")
    def _threshold(self) -> SftConfig:
        if (self.keep == "threshold") != (self.threshold is not None):
            raise ValueError(
                f"objective.threshold: {self.threshold} with keep {self.keep}; keep threshold needs it, only"
            )
        return self


class NftConfig(Strict):
    """DiffusionNFT: forward process, positive and negative branch around an old policy that is an average."""

    families: ClassVar[Families] = ("flow",)
    type: Literal["nft"] = "nft"
    """Negative-aware fine-tuning on the forward process."""
    beta: PositiveFloat = 1.0
    """How far the two branches lie from the old policy."""
    advantage_clip: PositiveFloat = 5.0
    """The advantage from which a sample is optimal with probability 1; minus it, with 0."""
    times_per_sample: Positive = 2
    """Points of the forward process that each sample is learned from at."""
    time_range: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Between which times those points lie; 1 is noise."""
    time_shift: PositiveFloat = 1.0
    """Bends the times toward noise when above 1."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the squared distance to the reference's velocity."""
    old_decay_flat: Annotated[int, Field(ge=0)] = 0
    """Steps before the old policy's decay begins to rise; until then it is the current policy."""
    old_decay_rate: Fraction = 1e-3
    """How much the decay rises with every step (published: 1e-3, or after 75 flat steps 0.0075)."""
    old_decay_max: Fraction = 0.5
    """Where the decay stops rising (published: 0.5, or 0.999)."""

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, kl=KlConfig(weight=self.kl_weight), credit=("sample", "place"))


class GradientConfig(Strict):
    """The reward's own gradient through sampling (AlignProp, DRaFT, ReFL)."""

    families: ClassVar[Families] = ("flow",)
    type: Literal["gradient"]
    """The reward's gradient through sampling."""
    truncation: Literal["none", "last", "suffix", "per_step", "one_step"] = "suffix"
    """Which steps carry it: all (none), the `last` few, a suffix as long as each sample draws, each by chance (per_step), or
    only the clean prediction at one of the `last` (one_step)."""
    last: Positive = 1
    """How many steps `last` keeps, or one_step chooses from."""
    target: float | None = None
    """|reward - target| is made small; null = the reward is made large."""
    recompute: bool = True
    """Whether activations are computed again on the way back instead of kept."""

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, feed="prompts")


class FlowPairs(Strict):
    """Where a flow model's errors on given pairs are taken."""

    families: ClassVar[Families] = ("flow",)
    times_per_sample: Positive = 2
    """Points of the forward process at which both pictures of a pair are compared."""
    time_range: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Between which times those points lie; 1 is noise."""
    time_shift: PositiveFloat = 1.0
    """Bends the times toward noise when above 1."""


class FlowDpoConfig(FlowPairs):
    """DPO of a flow model on pairs of pictures."""

    type: Literal["flow_dpo"]
    """Direct preference optimisation on pictures."""
    beta: PositiveFloat = 500.0
    """How strongly the model is held to the reference, per mean squared error of the velocity."""
    schedule: Literal["constant", "theory"] = "constant"
    """beta at all times, which works better, or beta (1 - t)^2, which the theory gives."""

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, feed="pairs")


class RwrConfig(FlowPairs):
    """Regression on both pictures of a pair, each weighted by the exponential of its score."""

    type: Literal["rwr"]
    """Reward-weighted regression on pictures."""
    temperature: PositiveFloat = 1.0
    """What scores are divided by before the exponential."""

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, feed="pairs", scored=True)


class CustomObjective(Strict):
    """Any other objective: a class at a dotted path `package.module:Class`, made with `options`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    families: ClassVar[Families] = BOTH
    type: Literal["custom"]
    """A class of your own (docs/objectives.md)."""
    path: str = Field(alias="class")
    """Its dotted path `package.module:Class`."""
    options: dict[str, Any] = {}
    """What it is made with, by name."""

    @property
    def needs(self) -> None:
        """What it needs stands on the class, which is imported when a run is set up."""


Objective = Annotated[
    GrpoConfig
    | NftConfig
    | DrpoConfig
    | LikelihoodConfig
    | DpoConfig
    | SftConfig
    | GradientConfig
    | FlowDpoConfig
    | RwrConfig
    | CustomObjective,
    Field(discriminator="type"),
]
