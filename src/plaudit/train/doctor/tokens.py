"""Checks of what is particular to token models: padding, the end of completions, and what tokens are drawn from."""

from __future__ import annotations

import torch

from plaudit.models.tokens import continued, with_media
from plaudit.recipe.sampling import TokenSampling
from plaudit.sampling.tokens import (
    Completions,
    causal,
    chosen_log_probs,
    left_padded,
    pick,
    positions_of,
    replay_logits,
    token_log_probs,
)
from plaudit.train.doctor.checks import Check, Patient, not_applicable, within

ENDS = "completions end where they should"
DRAWS, NUMBERS = 20_000, 20_000_000  # fewer draws from a large vocabulary: so many numbers in memory at most


def _completions(patient: Patient) -> Completions:
    assert isinstance(patient.piece.samples, Completions)
    return patient.piece.samples


@torch.no_grad()
def padding(patient: Patient) -> Check:
    """Logits after a prompt alone, and after it among longer ones with padding on its left."""
    model = patient.setup.policy.model
    prompts = list(dict.fromkeys(model.encode(patient.prompts)))
    longer = continued(prompts[0], prompts[0][-1:] * (2 + max(map(len, prompts))))
    prompts = [*prompts, longer]
    ids, valid = left_padded(prompts, model.pad_id)
    last = torch.tensor([ids.shape[1] - 1])
    together = model.logits(ids, positions_of(valid), causal(valid), keep=last, **with_media(prompts))[
        :, 0
    ].log_softmax(-1)
    deviations = []
    for row, prompt in zip(together, prompts, strict=True):
        one, present = left_padded([prompt], model.pad_id)
        keep, media = torch.tensor([len(prompt) - 1]), with_media([prompt])
        alone = model.logits(one, positions_of(present), causal(present), keep=keep, **media)[0, 0]
        alone = alone.log_softmax(-1)
        deviations.append(torch.where(alone == row, 0.0, (alone - row).abs()).max())  # -inf in both is equal
    largest = torch.stack(deviations).max().item()
    return within("padding changes nothing", largest, 1e-4, "the adapter ignores `visible` or `positions`")


@torch.no_grad()
def packing(patient: Patient) -> Check:
    """Log-probabilities of completions that share a row with others of their prompt, and of those in rows of their own."""
    name, model, completions = "packed rows equal single ones", patient.setup.policy.model, _completions(patient)
    sampler = patient.recipe.sampler
    assert isinstance(sampler, TokenSampling)
    if not (sampler.pack and model.packs) or completions.temperature == 0:
        return not_applicable(name, "every completion has a row of its own, or is greedy")
    packed, alone = (chosen_log_probs(replay_logits(model, completions, n), completions) for n in (sampler.pack, 0))
    return within(name, (packed - alone).abs().max().item(), 1e-4, "set sampler.pack to 0 for this model")


def ends(patient: Patient) -> Check:
    """Completions end at an end token or at the limit, and nowhere else."""
    completions, model = _completions(patient), patient.setup.policy.model
    sampler = patient.recipe.sampler
    assert isinstance(sampler, TokenSampling)
    wrong = 0
    for row, cut in zip(completions.rows(), completions.cut.tolist(), strict=True):
        inside, last = any(i in model.end_ids for i in row[:-1]), row[-1] in model.end_ids
        stopped = any(text in model.decode(row) for text in sampler.stop)
        wrong += inside or (cut and (last or len(row) < sampler.max_new_tokens)) or not (cut or last or stopped)
    return within(ENDS, wrong, 0, "an adapter's end_ids do not match what it draws")


@torch.no_grad()
def draws_match_density(patient: Patient) -> Check:
    """How often each first token comes in many draws, against the probability that is recorded for it."""
    model, sampler, completions = patient.setup.policy.model, patient.recipe.sampler, _completions(patient)
    assert isinstance(sampler, TokenSampling)
    if completions.temperature == 0:
        return not_applicable("draws have the density's frequencies", "completions are greedy")
    log_probs = token_log_probs(replay_logits(model, completions.select(torch.tensor([0])), 0)[:1], 1.0)
    V = log_probs.shape[1]
    draws = min(DRAWS, max(NUMBERS // V, 100))
    drawn = pick(log_probs.expand(draws, -1), (torch.arange(draws) + 0.5) / draws)
    share = torch.bincount(drawn.cpu(), minlength=V).double() / draws
    deviation = (share - log_probs[0].double().exp().cpu()).abs().max().item()
    return within("draws have the density's frequencies", deviation, 2 / draws, "tokens are drawn from other numbers")


CHEAP = (padding, ends)
LATER = (packing, draws_match_density)
