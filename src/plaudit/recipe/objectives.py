"""From scores to a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from plaudit.recipe.base import Fraction, Positive, PositiveFloat, Strict
from plaudit.recipe.models import Family

Feed = Literal["rollouts", "pairs", "demonstrations", "prompts"]
Families = tuple[Family, ...]
BOTH: Families = ("flow", "tokens")


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


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective asks of a run. The recipe, the loop and the doctor ask here and know no objective by its name."""

    families: Families = BOTH
    feed: Feed = "rollouts"
    whole_groups: bool = False
    """Whether the samples of a group must be learned from in one update."""
    stochastic: bool = False
    """Whether a flow model must be drawn with steps that have a density."""
    density: str = "exact"
    """In which scaling the density of a flow model's steps is recorded."""
    kl: KlConfig | None = None
    """The KL to the reference that the objective has of its own."""
    rewards: Mapping[str, str] = field(default_factory=dict)
    """Rewards of the recipe that the objective reads, by its key that names them."""


class GrpoConfig(Strict):
    """Clipped likelihood ratio over the decisions of a rollout: denoising steps (Flow-GRPO) or tokens. Names as in TRL:
    `importance_sampling_level` sequence is GSPO's ratio; `loss_type` says what the sum over decisions is divided by: dapo all
    decisions, grpo each sample's own and then all samples, dr_grpo the longest possible, luspo the samples only."""

    families: ClassVar[Families] = BOTH
    type: Literal["grpo"]
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    importance_sampling_level: Literal["token", "sequence"] = "token"
    loss_type: Literal["dapo", "grpo", "dr_grpo", "luspo"] = "dapo"
    density: Literal["exact", "mean", "flow_grpo", "cps"] = "exact"  # of flow models
    kl: KlConfig = KlConfig()

    @property
    def needs(self) -> Needs:
        return Needs(stochastic=True, density=self.density, kl=self.kl)


class DrpoConfig(Strict):
    """DRPO: a preference re-weighs the right answers among themselves, wrong ones are a contrast, and KL has a barrier.
    `correct` and `prefer` name rewards."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["drpo"]
    correct: str
    prefer: str
    temperature: PositiveFloat = 0.1  # lambda
    contrast_temperature: PositiveFloat = 10.0  # tau
    barrier: Annotated[float, Field(ge=0)] = 1e3
    margin: Annotated[float, Field(ge=0)] = 1e-4

    @property
    def needs(self) -> Needs:
        rewards = {"correct": self.correct, "prefer": self.prefer}
        return Needs(families=self.families, whole_groups=True, rewards=rewards)


class LikelihoodConfig(Strict):
    """The likelihood of a reference answer after the drawn reasoning, as reward and by its own gradient."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["likelihood"]
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    reward: str  # which of the recipe's rewards is the policy's own likelihood
    direct: Annotated[float, Field(ge=0)] = 1.0  # weight of the reward's own gradient
    kl: KlConfig = KlConfig()

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
    """DPO on pairs `chosen` and `rejected`. `sft_weight` adds the likelihood of the chosen answer (RPO: eta beta on the sum)."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["dpo"]
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    sft_reduction: Literal["sum", "mean"] = "sum"

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, feed="pairs")


class SftConfig(Strict):
    """Likelihood of given completions, or with `keep` of the model's own that scored well: the `best` of each group, or all
    that reach `threshold`."""

    families: ClassVar[Families] = ("tokens",)
    type: Literal["sft"]
    keep: Literal["given", "best", "threshold"] = "given"
    threshold: float | None = None

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
    beta: PositiveFloat = 1.0
    advantage_clip: PositiveFloat = 5.0  # advantage +-clip maps to optimality probability 1 or 0
    times_per_sample: Positive = 2
    time_range: tuple[Fraction, Fraction] = (0.0, 1.0)
    time_shift: PositiveFloat = 1.0
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    old_decay_max: Fraction = 0.5
    old_decay_rate: Fraction = 1e-3

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, kl=KlConfig(weight=self.kl_weight))


class GradientConfig(Strict):
    """The reward's own gradient through sampling (AlignProp, DRaFT, ReFL): of all steps, of the `last` few, of a `suffix` as long
    as each sample draws, of each step by chance (`per_step`), or of the clean prediction at one of the last (`one_step`)."""

    type: Literal["gradient"]
    families: ClassVar[Families] = ("flow",)
    truncation: Literal["none", "last", "suffix", "per_step", "one_step"] = "suffix"
    last: Positive = 1  # how many steps `last` keeps, or `one_step` chooses from
    target: float | None = None  # |reward - target| is made small; null = the reward is made large
    recompute: bool = True  # compute activations again on the way back instead of keeping them

    @property
    def needs(self) -> Needs:
        return Needs(families=self.families, feed="prompts")


class CustomObjective(Strict):
    """Any other objective: a class at a dotted path `package.module:Class`, made with `options`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    families: ClassVar[Families] = BOTH
    type: Literal["custom"]
    path: str = Field(alias="class")
    options: dict[str, Any] = {}

    @property
    def needs(self) -> None:
        """What it needs stands on the class, which is imported when a run is set up."""


Objective = Annotated[
    GrpoConfig | NftConfig | DrpoConfig | LikelihoodConfig | DpoConfig | SftConfig | GradientConfig | CustomObjective,
    Field(discriminator="type"),
]
