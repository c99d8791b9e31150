"""The recipe: one strict model per component. Importing it imports no torch.

Unknown keys are errors, a value has one home, and the defaults are the vetted default recipe. Its parts are in `base`, `models`,
`prompts`, `rewards`, `sampling` and `objectives`; here is the loop, and what must fit together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from plaudit.recipe.base import Optimiser, Positive, PositiveFloat, Strict
from plaudit.recipe.credit import Credit, OutcomeCredit, PositionsCredit
from plaudit.recipe.fit import Fit
from plaudit.recipe.models import LabModel, Model
from plaudit.recipe.objectives import DENSITIES, KLS, CustomObjective, Needs, NftConfig, Objective, Shaping
from plaudit.recipe.prompts import Prompts, ScenesPrompts
from plaudit.recipe.rewards import Missing, RewardConfig
from plaudit.recipe.sampling import AnyEvaluationSampler, AnySampler, EvaluationSampler, Sampler, TokenSampling
from plaudit.recipe.turns import POLICY, Turns
from plaudit.worlds import WORLDS, world_of

UP_TO_ONE = ("cps", "ddim_eta")  # kernels whose level is a share


class Train(Optimiser):
    """Batch vocabulary: a step draws `prompts_per_step` x `samples_per_prompt` samples, learns from them in
    `updates_per_step` optimiser updates, each accumulated over micro-batches of `micro_batch` samples."""

    steps: Positive | None = None
    """Stop after so many steps."""
    minutes: PositiveFloat | None = None
    """Stop after this much wall clock, whichever comes first."""
    network_calls: Positive | None = None
    """Stop after so many samples x network evaluations."""
    prompts_per_step: Positive = 12
    """Prompts of a step; each is a group. Objectives that learn from data: rows of a step."""
    samples_per_prompt: Positive = 16
    """Samples drawn of each prompt."""
    updates_per_step: Positive = 1
    """Optimiser updates that a step's samples are split over."""
    micro_batch: Positive = 64
    """Samples that are differentiated at once; gradients do not depend on it."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the average of the weights that becomes the result; 0 = the trained weights are the result."""
    refill: Annotated[int, Field(ge=0)] = 0
    """Rounds in which groups whose scores are all equal are replaced by groups of new prompts."""
    ratio_tolerance: PositiveFloat = 1e-6
    """How far the ratio may be from 1 before an update, times the root of the latent's dimensions, or 1000 for tokens."""
    mismatch_kl: PositiveFloat = 1e-3
    """Largest mean KL between drawing and replay."""

    @model_validator(mode="after")
    def _possible(self) -> Train:
        batch = self.prompts_per_step * self.samples_per_prompt
        if self.steps is None and self.minutes is None and self.network_calls is None:
            raise ValueError("train: give `steps`, `minutes` or `network_calls`, or the run would never end")
        if batch % self.updates_per_step:
            around = range(max(1, self.updates_per_step - 1000), min(batch, self.updates_per_step + 1000) + 1)
            nearest = sorted((n for n in around if batch % n == 0), key=lambda n: abs(n - self.updates_per_step))[:3]
            raise ValueError(
                f"train.updates_per_step: {batch} samples (prompts_per_step {self.prompts_per_step} x "
                f"samples_per_prompt {self.samples_per_prompt}) cannot be split into {self.updates_per_step} equal "
                f"updates; nearest that can: {', '.join(map(str, sorted(nearest) or [1]))}"
            )
        return self


class Evaluation(Strict):
    """Held-out measurement, at fixed prompts and fixed noise."""

    reward: RewardConfig = RewardConfig(type="scene_exact")
    """The truth that is reported; never trained on unless it is also among `rewards`."""
    every: Positive = 20
    """Steps between two measurements."""
    prompts: Positive = 192
    """Held-out prompts of a measurement during the run."""
    final_prompts: Positive = 600
    """Held-out prompts of the measurements before and after it."""
    sampler: AnyEvaluationSampler = EvaluationSampler()
    """How held-out outputs are drawn."""

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
    """A name of the table of methods or a dotted path `package.module:Class`."""
    budget: str = "200nfe"
    """What each prompt may cost: 200nfe (network calls), 64rewards, 30s; several with commas between."""
    options: dict[str, Any] = {}
    """Options of the method; another method starts without any."""


class Run(Strict):
    """Where results go."""

    folder: str = "runs"
    """The folder that holds the run's own."""
    name: str | None = None
    """Name of the run's folder; null = made from the recipe's name."""
    seed: Annotated[int, Field(ge=0)] = 0
    """All randomness follows from it."""
    save_every: Positive = 20
    """Steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    threads: Positive | None = None
    """CPU threads; null = all cores."""
    sandbox: Literal["landlock", "namespaces", "bubblewrap"] | None = None
    """Isolation that programs which a model wrote must have; null = the strongest that there is here (docs/sandbox.md)."""


class Recipe(Strict):
    """Everything `plaudit align` needs to know."""

    name: str = "default"
    """What the recipe is called; a file without one is named after itself."""
    system: str | None = None
    """S001..S129 where the recipe reproduces a published system."""
    summary: str = ""
    """What it does, in a line."""
    model: Model = LabModel()
    """What generates."""
    prompts: Prompts = ScenesPrompts()
    """What is asked."""
    rewards: dict[str, RewardConfig] = {"match": RewardConfig(type="scene_match")}
    """What scores, by a name of your choice."""
    combine: str | None = None
    """A formula over the rewards, for example `match * clip(sharp, 0, 1)`; null = their weighted sum."""
    calibration_outputs: Positive = 256
    """Held-out outputs of the untrained model that `calibrate` measures."""
    missing: Missing = Missing()
    """What becomes of scores that are absent."""
    sampler: AnySampler = Sampler()
    """How samples are drawn for training."""
    shaping: Shaping = Shaping()
    """How scores become advantages."""
    credit: Credit = OutcomeCredit()
    """What of a sample is credited."""
    objective: Objective = NftConfig()
    """How advantages become a loss."""
    turns: Turns = Turns()
    """Who learns when, where rewards learn too."""
    train: Train = Train(minutes=5.0)
    """How much is drawn and learned, and when it ends."""
    evaluate: Evaluation = Evaluation()
    """What is measured on held-out prompts."""
    search: Search = Search()
    """What `plaudit search` does with this recipe."""
    fit: Fit | None = None
    """What `plaudit fit` makes of it: a reward from preferences."""
    run: Run = Run()
    """Where results go."""

    @model_validator(mode="after")
    def _combinable(self) -> Recipe:
        if not self.rewards:
            raise ValueError("rewards: name at least one reward, for example `match: {type: scene_match}`")
        if isinstance(self.sampler, Sampler):
            _check_steps(self.sampler)
        if self.shaping.normalise == "each" and (self.combine is not None or self.missing.impute is not None):
            raise ValueError(
                "shaping.normalise: each adds the rewards by their weights, so `combine` and `missing.impute`, which speak of "
                "the total, would have no effect; leave them out, or use normalise total"
            )
        return self

    @model_validator(mode="after")
    def _all_have_turns(self) -> Recipe:
        learning = [name for name, config in self.rewards.items() if config.learn is not None]
        turns = self.turns
        if turns.gate is not None and turns.order:
            raise ValueError("turns: `order` is a cycle and `gate` decides by scores; give one of the two")
        if unknown := [name for name in turns.named if name not in (*learning, POLICY)]:
            there = ", ".join(learning) or "there is none"
            raise ValueError(f"turns: {unknown[0]!r} does not learn; name {POLICY} or a reward with `learn`: {there}")
        if idle := [name for name in (*learning, POLICY) if name not in turns.named and (learning or turns.named)]:
            raise ValueError(
                f"turns: {idle[0]} is never trained; give it one, such as `order: [{{train: {idle[0]}}}, ...]`"
            )
        if learning and self.model.family == "tokens":
            raise ValueError(
                f"rewards.{learning[0]}.learn: rewards learn from pictures, and this model writes texts; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_family(self) -> Recipe:
        """A model and its samplers belong together."""
        family = self.model.family
        for key, sampler in (("sampler", self.sampler), ("evaluate.sampler", self.evaluate.sampler)):
            if sampler.type != family:
                raise ValueError(
                    f"{key}.type: {sampler.type} for a model of family {family}; set {key}.type to {family}"
                    + (", or start from the recipe sums-grpo" if family == "tokens" else "")
                )
        world = WORLDS.get(self.prompts.type)
        if isinstance(self.model, LabModel) and world is not None and self.model.name not in world.networks:
            own = world_of(self.model.name).name
            raise ValueError(
                f"prompts.type: {world.name} with model lab/{self.model.name}, which answers prompts of {own}; "
                f"set prompts.type to that, or model to lab/{next(iter(world.networks))}"
            )
        if family == "tokens" and self.evaluate.reward.type.startswith("scene_"):
            raise ValueError(
                f"evaluate.reward: {self.evaluate.reward.type} looks at pictures, and this model writes texts; name a reward for "
                "texts (`plaudit rewards list --kind text`)"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        if self.objective.needs is not None:
            check_needs(self, self.objective.needs)
        return self


def check_needs(recipe: Recipe, needs: Needs) -> None:
    """Refuse what the objective cannot work with, and what would have no effect on it."""
    family = recipe.model.family
    if family not in needs.families:
        own = recipe.objective
        named = f"objective.class: {own.path}" if isinstance(own, CustomObjective) else f"objective.type: {own.type}"
        raise ValueError(f"{named} does not train models of family {family}; allowed: {', '.join(_fitting(family))}")
    if recipe.turns.named and needs.feed != "rollouts":
        raise ValueError(
            f"turns: rewards learn from what is drawn in a step, and objective {recipe.objective.type} learns from {needs.feed}; "
            "use one that learns from rollouts, such as grpo or nft"
        )
    if needs.feed == "rollouts":
        _check_rollouts(recipe, needs)
    else:
        _check_feed(recipe, needs)
    for key, name in needs.rewards.items():
        if name not in recipe.rewards:
            raise ValueError(
                f"objective.{key}: {name!r} is no reward of this recipe; rewards: {', '.join(recipe.rewards)}"
            )
    _check_updates(recipe, needs)
    _check_credit(recipe, needs)
    if family == "tokens" and needs.density != "exact":
        raise ValueError(f"objective.density: {needs.density} belongs to Gaussian steps; tokens have exact")
    if family == "tokens" and needs.kl is not None and needs.kl.scaling in ("mean", *KLS):
        raise ValueError(
            f"objective.kl.scaling: {needs.kl.scaling} belongs to Gaussian steps; for tokens: exact, k1, k2, k3"
        )


def _check_credit(recipe: Recipe, needs: Needs) -> None:
    credit, family = recipe.credit, recipe.model.family
    if isinstance(credit, OutcomeCredit):
        return
    if family not in credit.families or credit.where not in needs.credit or needs.feed != "rollouts":
        raise ValueError(
            f"credit.type: {credit.type} credits each {credit.where} of rollouts of family {' or '.join(credit.families)}; with "
            f"model {recipe.model.type} and objective {recipe.objective.type} leave credit out, or use objective grpo"
        )
    if recipe.shaping.normalise == "each" or (needs.kl is not None and needs.kl.place == "reward"):
        raise ValueError(
            f"credit.type: {credit.type} with shaping.normalise each or objective.kl.place reward, which speak of a sample's "
            "score as a whole; use normalise total and place loss"
        )
    if isinstance(credit, PositionsCredit):
        for key, name in (("reward", credit.reward), ("correct", credit.correct)):
            if name not in recipe.rewards:
                raise ValueError(
                    f"credit.{key}: {name!r} is no reward of this recipe; rewards: {', '.join(recipe.rewards)}"
                )


def _fitting(family: str) -> list[str]:
    """Types of objectives that train a family, for a message."""
    kinds = [kind for kind in get_args(get_args(Objective)[0]) if family in kind.families]
    return [get_args(kind.model_fields["type"].annotation)[0] for kind in kinds]


def _check_rollouts(recipe: Recipe, needs: Needs) -> None:
    if recipe.train.samples_per_prompt < 2:
        raise ValueError("train.samples_per_prompt: 1 sample has no group to be compared with; use at least 2")
    if isinstance(recipe.sampler, TokenSampling):
        _check_exact(recipe.sampler)
    elif needs.stochastic:
        _check_stochastic(recipe.sampler, recipe.objective.type, needs)


def _check_feed(recipe: Recipe, needs: Needs) -> None:
    """What is not learned from rollouts compares no samples; what is learned from data draws nothing."""
    kind, train = recipe.objective.type, recipe.train
    if train.refill or recipe.shaping != Shaping():
        raise ValueError(
            f"objective.type: {kind} learns from {needs.feed}, where there are no groups; leave train.refill and shaping out"
        )
    if needs.feed != "prompts" and train.steps is None and train.minutes is None:
        raise ValueError(
            f"train.network_calls: objective {kind} draws nothing, so the run would never end; give steps or minutes"
        )


def _check_exact(sampler: TokenSampling) -> None:
    """A ratio needs the probability of what was drawn under both policies, and a cut distribution has other tokens in each."""
    if sampler.top_k is not None or sampler.top_p < 1 or sampler.temperature == 0:
        raise ValueError(
            f"sampler: temperature {sampler.temperature:g}, top_k {sampler.top_k}, top_p {sampler.top_p:g}; training needs every "
            "token possible: temperature above 0, top_k null, top_p 1 (evaluate.sampler may have others)"
        )


def _check_updates(recipe: Recipe, needs: Needs) -> None:
    """Rows of data, and whole groups, cannot be split into more updates than there are prompts."""
    rows, updates, data = (
        recipe.train.prompts_per_step,
        recipe.train.updates_per_step,
        needs.feed in ("pairs", "demonstrations"),
    )
    if (data and rows % updates) or (needs.whole_groups and updates > rows):
        raise ValueError(
            f"train.updates_per_step: {updates} for objective {recipe.objective.type}, which learns from train.prompts_per_step "
            f"{rows} {'rows' if data else 'groups'}; use {'a divisor of' if data else 'at most'} {rows}"
        )


def _check_stochastic(sampler: Sampler, kind: str, needs: Needs) -> None:
    if sampler.steps < 2:
        raise ValueError(
            f"sampler.steps: 1 leaves objective {kind} nothing to train, the last step is deterministic; use 2"
        )
    if sampler.kernel == "ode" or sampler.level == 0:
        raise ValueError(
            f"objective.type {kind} needs stochastic steps: set sampler.kernel to flow_sde, constant_eta, cps or "
            f"ddim_eta and sampler.level above 0 (now kernel {sampler.kernel}, level {sampler.level}), "
            "or use objective.type nft, which needs none"
        )
    _check_scalings(sampler.kernel, needs)


def _check_scalings(kernel: str, needs: Needs) -> None:
    """A name of a published scaling means what was published for the kernel."""
    scaling = needs.kl.scaling if needs.kl else "exact"
    for key, name, published in (("density", needs.density, DENSITIES), ("kl.scaling", scaling, KLS)):
        if name in published and kernel not in published[name]:
            raise ValueError(
                f"objective.{key}: {name} with sampler.kernel {kernel}; it was published for {', '.join(published[name])}; set "
                f"sampler.kernel to that, or use exact or mean"
            )


def _check_steps(sampler: Sampler) -> None:
    if sampler.kernel in UP_TO_ONE and (largest := max(sampler.level, sampler.level_min)) > 1:
        raise ValueError(f"sampler.level: {largest:g} for {sampler.kernel}, whose levels lie in [0, 1]")
    if sampler.level_schedule == "balanced" and (sampler.kernel == "ode" or sampler.level == 0 or sampler.window.size):
        raise ValueError(
            "sampler.level_schedule: balanced finds the noise of every step, from sampler.level above 0; set sampler.kernel to "
            "constant_eta (the paper's) or another one with noise, and sampler.window.size to null"
        )
    first, last = sampler.window.start
    size = sampler.window.size or 1
    if first > last or last + size > max(sampler.steps - 1, 1):
        raise ValueError(
            f"sampler.window: {size} steps starting in [{first}, {last}] do not fit; of {sampler.steps} steps "
            f"the last is always deterministic, so start must lie in [0, {max(sampler.steps - 1 - size, 0)}]"
        )
