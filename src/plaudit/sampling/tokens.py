"""Drawing completions token by token, and replaying their log-probabilities with gradients.

Samples of one prompt share its prefill, finished ones leave the batch, and in the replay completions of one prompt share a
row, so that the prompt is read once. Only the columns that a token was drawn from go through the head.

Shape legend: B samples, T tokens, A samples still being drawn, N rows of a network call, L columns, W columns of prompt,
M tokens of all samples together, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.tokens import Ids, TokenModel, with_media
from plaudit.recipe.sampling import TokenSampling
from plaudit.sampling.noise import SampleKey, uniform

STOP_SLACK = 8  # tokens more than a stop text has bytes are looked at for it: it may begin inside of one


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Completions padded on the right. `log_prob [B, T]` is of the policy that drew them, NaN throughout where they were
    given instead of drawn, 0 where there is no token; `cut [B]` marks those that came to the limit without an end."""

    prompt_ids: tuple[Ids, ...]
    ids: Tensor
    mask: Tensor
    log_prob: Tensor
    cut: Tensor
    temperature: float
    limit: int  # tokens that a completion could have had
    network_calls: int = 0

    # One token of thousands may round in its fourth digit: logits of some tens in the draw, and again in a replay of another
    # shape. What differs in more than a token shows in `train.mismatch_kl`.
    rounding = 1000.0

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def decisions(self) -> Completions:
        return self

    @property
    def length(self) -> Tensor:
        return self.mask.sum(1)

    def rows(self) -> list[Ids]:
        """The ids of every completion without padding."""
        return [tuple(row[: int(n)].tolist()) for row, n in zip(self.ids, self.length, strict=True)]

    def select(self, rows: Tensor) -> Completions:
        """Some samples, no wider than the longest of them."""
        chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        width = max(int(self.length[chosen].max()), 1) if len(chosen) else 1
        return replace(
            self,
            prompt_ids=tuple(self.prompt_ids[i] for i in chosen.tolist()),
            ids=self.ids[chosen, :width],
            mask=self.mask[chosen, :width],
            log_prob=self.log_prob[chosen, :width],
            cut=self.cut[chosen],
        )

    @staticmethod
    def cat(parts: Sequence[Completions]) -> Completions:
        width = max(part.ids.shape[1] for part in parts)

        def widened(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, width - values.shape[1]))

        return replace(
            parts[0],
            prompt_ids=tuple(itertools.chain.from_iterable(part.prompt_ids for part in parts)),
            ids=torch.cat([widened(part.ids) for part in parts]),
            mask=torch.cat([widened(part.mask) for part in parts]),
            log_prob=torch.cat([widened(part.log_prob) for part in parts]),
            cut=torch.cat([part.cut for part in parts]),
            network_calls=sum(part.network_calls for part in parts),
        )


def given_completions(
    prompt_ids: Sequence[Ids], completion_ids: Sequence[Ids], temperature: float = 1.0
) -> Completions:
    """Completions that nobody drew: of a data set."""
    width = max(map(len, completion_ids))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in completion_ids])
    mask = torch.arange(width) < torch.tensor([len(row) for row in completion_ids])[:, None]
    unknown = torch.where(mask, torch.nan, 0.0).double()
    cut = torch.zeros(len(ids), dtype=torch.bool)
    return Completions(
        prompt_ids=tuple(prompt_ids),
        ids=ids,
        mask=mask,
        log_prob=unknown,
        cut=cut,
        temperature=temperature,
        limit=width,
    )


# --- drawing -------------------------------------------------------------------------------------------------------


def token_log_probs(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Log-probabilities `[A, V]` that tokens are drawn with: tempered, then cut to the likeliest `top_k` and to the fewest
    likeliest that hold `top_p`, and normalised again. Temperature 0 is greedy: all probability on the first largest."""
    logits = logits.float()
    if temperature == 0:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter(1, logits.argmax(1, keepdim=True), 0.0)
    log_probs = (logits / temperature).log_softmax(1)
    if top_k is not None and top_k < log_probs.shape[1]:
        least = log_probs.topk(top_k, dim=1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf).log_softmax(1)
    if top_p < 1:
        ordered, index = log_probs.sort(dim=1, descending=True)
        before = ordered.exp().cumsum(1) - ordered.exp()
        unlikely = torch.zeros_like(before, dtype=torch.bool).scatter(1, index, before >= top_p)
        log_probs = log_probs.masked_fill(unlikely, -torch.inf).log_softmax(1)
    return log_probs


def pick(log_probs: Tensor, number: Tensor) -> Tensor:
    """Tokens `[A]` by inverting the distribution at uniform numbers `[A]`; one of probability 0 is never picked."""
    cumulative = log_probs.double().exp().cumsum(1)
    number = number.to(cumulative)[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, number, right=True)[:, 0]
    likeliest = log_probs.argmax(1)  # where rounding puts the number at the very end
    return torch.where(place < log_probs.shape[1], place, likeliest)


def causal(valid: Tensor) -> Tensor:
    """Which keys each column sees `[N, L, L]`: the valid ones up to itself. Padding sees itself, so that nothing is NaN."""
    L = valid.shape[1]
    visible = valid[:, None, :] & torch.ones(L, L, dtype=torch.bool, device=valid.device).tril()
    return visible | torch.eye(L, dtype=torch.bool, device=valid.device)


def left_padded(rows: Sequence[Ids], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids `[N, W]` that all end in the last column, and which of them are there."""
    width = max(map(len, rows))
    ids = torch.tensor([[*[pad_id] * (width - len(row)), *row] for row in rows])
    return ids, torch.arange(width) >= torch.tensor([width - len(row) for row in rows])[:, None]


def positions_of(valid: Tensor) -> Tensor:
    return (valid.long().cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def draw_completions(
    model: TokenModel, prompt_ids: Sequence[Ids], sampling: TokenSampling, keys: Sequence[SampleKey]
) -> Completions:
    """One completion per prompt and key, all in one batch."""
    distinct = list(dict.fromkeys(prompt_ids))
    B, T = len(prompt_ids), sampling.max_new_tokens
    check_room(model, max(map(len, distinct)), T)
    ids, valid = left_padded(distinct, model.pad_id)
    cache, last = model.new_cache(), torch.tensor([ids.shape[1] - 1])
    logits = model.logits(ids, positions_of(valid), causal(valid), cache=cache, keep=last, **with_media(distinct))[:, 0]
    of_prompt = torch.tensor([distinct.index(p) for p in prompt_ids])
    cache.select(of_prompt)
    logits, seen, position = logits[of_prompt], valid[of_prompt], valid.sum(1)[of_prompt]
    numbers = uniform(keys, "tokens", T) if sampling.temperature > 0 else torch.zeros(B, T)
    drawn, log_prob = torch.full((B, T), model.pad_id), torch.zeros(B, T, dtype=torch.float64)
    length, cut, active, calls = torch.zeros(B, dtype=torch.long), torch.ones(B, dtype=torch.bool), torch.arange(B), 0
    calls += len(distinct)
    for t in range(T):
        log_probs = token_log_probs(logits, sampling.temperature, sampling.top_k, sampling.top_p)
        token = pick(log_probs, numbers[active, t])
        log_prob[active, t] = log_probs.gather(1, token[:, None])[:, 0].double().cpu()
        drawn[active, t] = token = token.cpu()
        length[active] = t + 1
        ended = _ended(model, drawn[active, : t + 1], sampling.stop)
        cut[active[ended]] = False
        going = (~ended).nonzero()[:, 0]
        if len(going) == 0 or t + 1 == T:
            break
        if len(going) < len(active):
            cache.select(going)
            active, token, seen, position = active[going], token[going], seen[going], position[going]
        seen = torch.cat([seen, torch.ones(len(active), 1, dtype=torch.bool)], dim=1)
        logits = model.logits(token[:, None], position[:, None], seen[:, None, :], cache=cache)[:, 0]
        position, calls = position + 1, calls + len(active)
    width = int(length.max())
    return Completions(
        prompt_ids=tuple(prompt_ids),
        ids=drawn[:, :width],
        mask=torch.arange(width) < length[:, None],
        log_prob=log_prob[:, :width],
        cut=cut,
        temperature=sampling.temperature,
        limit=T,
        network_calls=calls,
    )


def check_room(model: TokenModel, prompt: int, completion: int) -> None:
    """A model that is asked beyond its context answers nonsense or crashes."""
    if model.context is not None and prompt + completion > model.context:
        raise RecipeError(
            f"sampler.max_new_tokens: a prompt of {prompt} tokens and a completion of {completion} do not fit into the model's "
            f"context of {model.context}; lower max_new_tokens, or shorten prompts and completions"
        )


def _ended(model: TokenModel, drawn: Tensor, stop: Sequence[str]) -> Tensor:
    """Samples `[A]` whose last token is an end, or completes a stop text."""
    ended = torch.isin(drawn[:, -1], torch.tensor(sorted(model.end_ids)))
    if stop:
        tails = [model.decode(row) for row in drawn[:, -stop_window(stop) :].tolist()]
        ended |= torch.tensor([any(text in tail for text in stop) for tail in tails])
    return ended


def stop_window(stop: Sequence[str]) -> int:
    """Tokens at the end of a completion in which a stop text can lie."""
    return max(len(text.encode()) for text in stop) + STOP_SLACK


# --- replay --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where every token of some completions is predicted: in row `row [M]` and column `column [M]` of a network call whose
    prompts all end in column `width - 1`."""

    contexts: Sequence[Ids]
    ids: Tensor
    positions: Tensor
    visible: Tensor
    width: int
    row: Tensor
    column: Tensor


def packed_rows(completions: Completions, limit: int) -> list[list[int]]:
    """Samples of the same prompt that share a row of at most `limit` columns, the longest first into the first row that
    has room."""
    lengths, rooms = completions.length.tolist(), dict[Ids, list[tuple[int, list[int]]]]()
    for i in sorted(range(len(completions)), key=lambda i: -lengths[i]):
        bins = rooms.setdefault(completions.prompt_ids[i], [])
        needed = lengths[i] - 1  # nothing is predicted from the last token
        fitting = next((b for b, (room, _) in enumerate(bins) if room >= needed), None)
        if fitting is None:
            bins.append((limit - len(completions.prompt_ids[i]) - needed, [i]))
        else:
            room, members = bins[fitting]
            bins[fitting] = (room - needed, [*members, i])
    return [members for bins in rooms.values() for _, members in bins]


def lay_out(completions: Completions, rows: Sequence[Sequence[int]], pad_id: int) -> Layout:
    """Rows of a prompt and then its completions, each of which sees the prompt and itself."""
    prompts = [completions.prompt_ids[members[0]] for members in rows]
    width, lengths = max(map(len, prompts)), completions.length.tolist()
    total = width + max(sum(max(lengths[i] - 1, 0) for i in members) for members in rows)
    ids = torch.full((len(rows), total), pad_id)
    positions, segment = torch.zeros_like(ids), torch.full_like(ids, -1)  # -1 padding, 0 prompt, 1.. completions
    row, column = torch.zeros_like(completions.ids), torch.full_like(completions.ids, width - 1)
    for n, (prompt, members) in enumerate(zip(prompts, rows, strict=True)):
        ids[n, width - len(prompt) : width] = torch.tensor(prompt)
        positions[n, width - len(prompt) : width] = torch.arange(len(prompt))
        segment[n, width - len(prompt) : width] = 0
        start = width
        for number, i in enumerate(members, start=1):
            row[i] = n
            read = max(lengths[i] - 1, 0)
            here = slice(start, start + read)
            ids[n, here] = completions.ids[i, :read]
            positions[n, here] = torch.arange(len(prompt), len(prompt) + read)
            segment[n, here] = number
            column[i, 1 : read + 1] = torch.arange(start, start + read)
            start += read
    own = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    visible = causal(segment >= 0) & (own | torch.eye(total, dtype=torch.bool))
    mask = completions.mask
    return Layout(
        contexts=prompts,
        ids=ids,
        positions=positions,
        visible=visible,
        width=width,
        row=row[mask],
        column=column[mask] - width + 1,
    )


def replay_logits(model: TokenModel, completions: Completions, pack: int) -> Tensor:
    """Tempered logits `[M, V]` that every token was drawn from, with gradients; `pack` columns in a row at most, where
    completions of one prompt share it (0: a row each)."""
    alone = [[i] for i in range(len(completions))]
    layout = lay_out(completions, packed_rows(completions, pack) if pack and model.packs else alone, model.pad_id)
    check_room(model, int(layout.positions.max()) + 1, 0)
    keep = torch.arange(layout.width - 1, layout.ids.shape[1])
    logits = model.logits(layout.ids, layout.positions, layout.visible, keep=keep, **with_media(layout.contexts))
    drawn_from = logits[layout.row, layout.column].float()
    return drawn_from if completions.temperature == 1 else drawn_from / completions.temperature


def chosen_log_probs(logits: Tensor, completions: Completions) -> Tensor:
    """Log-probabilities `[B, T]` of the tokens that were drawn; 0 where there is none."""
    token = completions.ids[completions.mask].to(logits.device)
    chosen = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)
    return spread(chosen.double(), completions)


def entropies(logits: Tensor, completions: Completions) -> Tensor:
    """Entropy `[B, T]` of the distributions the tokens were drawn from, without gradient; what cannot be drawn adds nothing."""
    parts = []
    for few in logits.detach().split(8):  # rows that fit into a core's cache
        log_probs = few.log_softmax(1)
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
        parts.append(-torch.linalg.vecdot(log_probs.exp(), finite))
    return spread(torch.cat(parts).double(), completions)


def spread(values: Tensor, completions: Completions) -> Tensor:
    """One value `[M]` per token to `[B, T]`."""
    return torch.zeros(completions.mask.shape, dtype=values.dtype).masked_scatter(completions.mask, values.cpu())
