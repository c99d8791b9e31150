"""The two families as the trainer and the measurements see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import FlowModel, decoded, times_of
from plaudit.models.tokens import TokenModel
from plaudit.ranks import ALONE, Ranks
from plaudit.recipe.sampling import EvaluationSampler, Sampler, TokenSampling
from plaudit.sampling.base import Drawer, Piece
from plaudit.sampling.noise import SampleKey, numbered_keys
from plaudit.sampling.plan import deterministic_plan, noise_levels, stochastic_plan
from plaudit.sampling.rollout import FlowSamples, Starts, draw, tiles
from plaudit.sampling.tokens import Completions, draw_completions

EVALUATION_STEP = -1  # the step number of noise that belongs to no training step


@dataclass(frozen=True, kw_only=True)
class FlowDrawer:
    """Pictures of a flow model; `density` is what log-probabilities are recorded in, `levels [K]` the noise of the steps."""

    model: FlowModel
    encoder: PromptEncoder
    sampler: Sampler
    evaluation_sampler: EvaluationSampler
    levels: Tensor
    density: str = "exact"
    ranks: Ranks = ALONE

    def training(
        self, prompts: Sequence[Prompt], keys: Sequence[SampleKey], first_of_group: Sequence[SampleKey]
    ) -> Iterator[Piece]:
        starts, tile = self.starts(prompts, keys, first_of_group), self.sampler.tile

        def piece(rows: Tensor) -> Piece:
            part = starts.select(rows)
            samples = draw(
                self.model,
                part.conditioning,
                part.plan,
                part.keys,
                tile=tile,
                initial_keys=part.initial_keys,
                density=self.density,
            )
            return self._piece(samples)

        return self.ranks.share(tiles(len(keys), tile), piece)

    @property
    def times(self) -> Tensor:
        """Those of a training rollout, from noise to data."""
        return times_of(self.model, self.sampler.steps, self.sampler.shift)

    def starts(
        self, prompts: Sequence[Prompt], keys: Sequence[SampleKey], first_of_group: Sequence[SampleKey]
    ) -> Starts:
        """What a training batch is drawn from."""
        sampler, times = self.sampler, self.times
        return Starts(
            conditioning=self.encoder(prompts, sampler.guidance),
            plan=stochastic_plan(sampler, times, keys, first_of_group, self.levels),
            keys=tuple(keys),
            initial_keys=tuple(first_of_group if sampler.same_noise else keys),
        )

    def evaluation(self, prompts: Sequence[Prompt], keys: Sequence[SampleKey]) -> Piece:
        sampler = self.evaluation_sampler
        times, conditioning = (
            times_of(self.model, sampler.steps, sampler.shift),
            self.encoder(prompts, sampler.guidance),
        )

        def piece(rows: Tensor) -> Piece:
            plan, own = deterministic_plan(times, len(rows), sampler.solver), [keys[i] for i in rows.tolist()]
            return self._piece(draw(self.model, conditioning.select(rows), plan, own, tile=sampler.tile))

        return self.join(list(self.ranks.share(tiles(len(prompts), sampler.tile), piece)))

    def join(self, pieces: Sequence[Piece]) -> Piece:
        samples = FlowSamples.cat([piece.samples for piece in pieces if isinstance(piece.samples, FlowSamples)])
        return Piece(samples=samples, outputs=torch.cat([piece.outputs for piece in pieces]))

    @torch.no_grad()
    def _piece(self, samples: FlowSamples) -> Piece:
        return Piece(samples=samples, outputs=decoded(self.model, samples.latents))


@dataclass(frozen=True, kw_only=True)
class TokenDrawer:
    """Texts of a token model."""

    model: TokenModel
    sampler: TokenSampling
    evaluation_sampler: TokenSampling
    ranks: Ranks = ALONE

    def training(
        self, prompts: Sequence[Prompt], keys: Sequence[SampleKey], first_of_group: Sequence[SampleKey]
    ) -> Iterator[Piece]:
        return self._draw(prompts, keys, self.sampler)

    def evaluation(self, prompts: Sequence[Prompt], keys: Sequence[SampleKey]) -> Piece:
        return self.join(list(self._draw(prompts, keys, self.evaluation_sampler)))

    def _draw(self, prompts: Sequence[Prompt], keys: Sequence[SampleKey], sampling: TokenSampling) -> Iterator[Piece]:
        prompt_ids = self.model.encode(prompts)

        def piece(rows: Tensor) -> Piece:
            of = slice(int(rows[0]), int(rows[-1]) + 1)
            return self._piece(draw_completions(self.model, prompt_ids[of], sampling, keys[of]))

        return self.ranks.share(tiles(len(keys), sampling.tile), piece)

    def join(self, pieces: Sequence[Piece]) -> Piece:
        samples = Completions.cat([piece.samples for piece in pieces if isinstance(piece.samples, Completions)])
        return self._piece(samples)

    def _piece(self, samples: Completions) -> Piece:
        rows = samples.rows()
        return Piece(samples=samples, outputs=[self.model.decode(ids) for ids in rows], ids=rows)


def make_drawer(
    model: FlowModel | TokenModel,
    sampler: Sampler | TokenSampling,
    evaluation_sampler: EvaluationSampler | TokenSampling,
    density: str = "exact",
    ranks: Ranks = ALONE,
) -> Drawer:
    if isinstance(sampler, TokenSampling) and isinstance(evaluation_sampler, TokenSampling):
        return TokenDrawer(model=model, sampler=sampler, evaluation_sampler=evaluation_sampler, ranks=ranks)  # type: ignore[arg-type]
    assert isinstance(sampler, Sampler) and isinstance(evaluation_sampler, EvaluationSampler), (
        "the recipe has checked this"
    )
    return FlowDrawer(
        model=model,  # type: ignore[arg-type]
        encoder=PromptEncoder(model),  # type: ignore[arg-type]
        sampler=sampler,
        evaluation_sampler=evaluation_sampler,
        levels=noise_levels(sampler),
        density=density,
        ranks=ranks,
    )


def generate(drawer: Drawer, prompts: Sequence[Prompt], seed: int) -> Piece:
    """Outputs of prompts as a measurement draws them, at fixed noise."""
    return drawer.evaluation(prompts, numbered_keys(prompts, seed=seed, step=EVALUATION_STEP))
