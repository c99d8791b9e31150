"""What a search method may use of a token model. Every row of every network call is counted in the ledger: a distinct prompt
once for each `start`, then every later token of a row once, as `draw_completions` counts.

    rows = task.start(prompt, candidate)                 the prompts, read once each            network_calls
    rows = task.extend(rows, 8)                          at most 8 more tokens                  network_calls
    rows = task.extend(rows, until=wanted)               until `wanted(text)` holds             network_calls
    rows = task.regenerate(rows, position, 8, stream=s)  back to that length, then on           network_calls
    rows.select(index), TokenRows.cat(parts)             copies, with their caches              free
    texts = task.texts(rows)                             of prefixes as of finished rows        free
    score = task.score(texts, rows.prompt)               totals [B], NaN where missing          reward_calls
    found = task.finished(rows)                          score and found

Token t of a row is drawn with number t of its key's `stream`; the stream "tokens" from the start to the end is the plain
sample. A row that has been drawn from before needs a fresh stream: its old numbers have been seen. What `method.run` owes its
caller stands in `search/flow/task.py`.

Shape legend: B rows, A rows being drawn, T tokens at most, S columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.caches import joined
from plaudit.models.tokens import TokenModel, with_media
from plaudit.recipe.sampling import TokenSampling
from plaudit.rewards.suite import Suite
from plaudit.sampling.noise import uniform
from plaudit.sampling.rollout import tiles
from plaudit.sampling.tokens import (
    causal,
    check_room,
    left_padded,
    pick,
    positions_of,
    stop_window,
    token_log_probs,
)
from plaudit.search.base import Task
from plaudit.search.budget import Budget, Cost
from plaudit.search.rows import Found
from plaudit.search.text.rows import TokenRows, compacted, reading_again, stacked

Until = Callable[[str], bool]
PLAIN_STREAM = "tokens"


@dataclass(frozen=True, kw_only=True)
class _Pause:
    """Rows `[A]` of a batch that wait from now on, and where they lie in a cache and its mask: in the rows `place [A]`."""

    rows: Tensor
    cache: Any
    seen: Tensor
    place: Tensor

    def kept(self) -> _Pause:
        """With a cache of their own."""
        cache, seen = compacted(self.cache, self.seen, self.place)
        return replace(self, cache=cache, seen=seen, place=torch.arange(len(self.place)))


class TokenTask(Task):
    """A token model, its prompts and how it draws. `sampling.tile` rows share a network call."""

    def __init__(
        self,
        model: TokenModel,
        prompts: Sequence[Prompt],
        suite: Suite | None,
        budget: Budget,
        *,
        sampling: TokenSampling,
        **common: object,
    ) -> None:
        super().__init__(prompts, suite, budget, **{"tile": sampling.tile, **common})  # type: ignore[arg-type]
        if budget.network_calls is None and budget.reward_calls is None and budget.seconds is None:
            raise RecipeError(
                f"budget {budget}: drawing texts spends network calls, reward calls and time, none of which is limited; give "
                "one, for example 400nfe"
            )
        self.model, self.sampling = model, sampling
        self.prompt_ids = model.encode(prompts)
        check_room(model, max(map(len, self.prompt_ids)), sampling.max_new_tokens)
        self.prompt_length = torch.tensor([len(ids) for ids in self.prompt_ids])
        self._end_ids = torch.tensor(sorted(model.end_ids))

    shorter = "max_new_tokens"

    @property
    def longest(self) -> int:
        """Tokens that a text may have."""
        return self.sampling.max_new_tokens

    # --- cost --------------------------------------------------------------------------------------------------------

    def cost(self, *, tokens: int = 0, scores: int = 0) -> Cost:
        """Of so many network calls and scored texts. A text of n tokens takes n calls, that of its prompt included: nothing
        is drawn from its last token."""
        return Cost(network_calls=tokens, reward_calls=scores * self.calls_per_score)

    @property
    def sample_cost(self) -> Cost:
        return self.cost(tokens=self.longest, scores=1)

    # --- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, prompt: Tensor, candidate: Tensor) -> TokenRows:
        """Rows without a token; every distinct prompt among them is read once."""
        asked = [self.prompt_ids[p] for p in prompt.tolist()]
        paying = {ids: p for ids, p in zip(reversed(asked), reversed(prompt.tolist()), strict=True)}
        distinct = list(dict.fromkeys(asked))
        payer = torch.tensor([paying[ids] for ids in distinct])
        self.ledger.require("network_calls", payer)
        caches, masks, logits = [], [], []
        for of in tiles(len(distinct), self.tile):
            contexts = [distinct[i] for i in of.tolist()]
            ids, valid = left_padded(contexts, self.model.pad_id)
            cache, last = self.model.new_cache(), torch.tensor([ids.shape[1] - 1])
            with self.spending("network_calls", payer[of]):
                read = self.model.logits(
                    ids, positions_of(valid), causal(valid), cache=cache, keep=last, **with_media(contexts)
                )
            caches.append(cache)
            masks.append(valid)
            logits.append(read[:, 0])
        place = {ids: i for i, ids in enumerate(distinct)}
        rows = torch.tensor([place[ids] for ids in asked])
        cache = joined(caches)
        cache.select(rows)
        B, T = len(prompt), self.longest
        return TokenRows(
            prompt=prompt,
            candidate=candidate,
            ids=torch.full((B, T), self.model.pad_id),
            log_prob=torch.zeros(B, T, dtype=torch.float64),
            length=torch.zeros(B, dtype=torch.long),
            ended=torch.zeros(B, dtype=torch.bool),
            cache=cache,
            seen=stacked(masks)[rows],
            logits=torch.cat(logits)[rows],
        )

    def extend(
        self, rows: TokenRows, tokens: int | None = None, *, until: Until | None = None, stream: str = PLAIN_STREAM
    ) -> TokenRows:
        """At most `tokens` more, or until `until` of the text drawn so far holds; None goes on to the end. Finished rows, and
        those where `until` holds already, cost nothing. The given rows stay valid."""
        self._check_branches()
        T = self.longest
        limit = torch.full_like(rows.length, T) if tokens is None else (rows.length + tokens).clamp(max=T)
        going = ~rows.finished & (rows.length < limit)
        if until is not None:
            going &= ~torch.tensor([until(text) for text in self.texts(rows)], dtype=torch.bool)
        made, active, rest = _copied(rows), going.nonzero()[:, 0], (~going).nonzero()[:, 0]
        waiting = reading_again(rows)
        parts = [_Pause(rows=rest, cache=waiting.cache, seen=waiting.seen, place=rest).kept()] if len(rest) else []
        for of in tiles(len(active), self.tile) if len(active) else ():
            drawing = self._draw(made, active[of], rows.select(active[of]), limit, until, stream)
            parts += [pause.kept() for pause in drawing]
        return _assembled(made, parts)

    def regenerate(
        self,
        rows: TokenRows,
        position: Tensor,
        tokens: int | None = None,
        *,
        until: Until | None = None,
        stream: str,
    ) -> TokenRows:
        """Back to the first `position [B]` tokens, then on as in `extend` with a stream of its own. The token before the first
        new one is read again; no other is."""
        self._check_branches()
        return self.extend(self.rewound(rows, position), tokens, until=until, stream=stream)

    def rewound(self, rows: TokenRows, position: Tensor) -> TokenRows:
        return rows.rewound(position, self.prompt_length[rows.prompt])

    def _draw(
        self,
        made: TokenRows,
        rows: Tensor,
        state: TokenRows,
        limit: Tensor,
        until: Until | None,
        stream: str,
    ) -> Iterator[_Pause]:
        """Draw the rows `[A]` on, writing into `made`; tells of those that pause before it goes on with the others. `state` holds
        them alone, and its cache is used up."""
        sampling, prompt = self.sampling, made.prompt
        keys = self.keys(state.prompt, state.candidate)
        greedy = sampling.temperature == 0
        numbers = torch.zeros(len(rows), self.longest) if greedy else uniform(keys, stream, self.longest)
        cache, seen, logits, of = state.cache, state.seen, state.logits, torch.arange(len(rows))
        while True:
            with torch.no_grad():
                if logits is None:
                    position, last = seen.sum(1), self._last_token(made, rows[of])
                    seen = torch.cat([seen, torch.ones(len(of), 1, dtype=torch.bool)], dim=1)
                    with self.spending("network_calls", prompt[rows[of]]):
                        logits = self.model.logits(last[:, None], position[:, None], seen[:, None, :], cache=cache)[
                            :, 0
                        ]
                log_probs = token_log_probs(logits, sampling.temperature, sampling.top_k, sampling.top_p)
                at = made.length[rows[of]]
                token = pick(log_probs, numbers[of, at])
                made.log_prob[rows[of], at] = log_probs.gather(1, token[:, None])[:, 0].double().cpu()
                made.ids[rows[of], at] = token.cpu()
            made.length[rows[of]] = at + 1
            made.ended[rows[of]] = self._ended(made, rows[of])
            pausing = made.ended[rows[of]] | (at + 1 == limit[rows[of]])
            if until is not None:
                wanted = [until(self.model.decode(made.ids[i, : made.length[i]].tolist())) for i in rows[of].tolist()]
                pausing |= torch.tensor(wanted, dtype=torch.bool)
            if pausing.any():
                left = pausing.nonzero()[:, 0]
                yield _Pause(rows=rows[of][left], cache=cache, seen=seen, place=left)
                if pausing.all():
                    return
                going = (~pausing).nonzero()[:, 0]
                cache.select(going)
                of, seen = of[going], seen[going]
            logits = None

    def _last_token(self, rows: TokenRows, chosen: Tensor) -> Tensor:
        """The last token of rows `[A]`, or that of the prompt of one that has none."""
        length = rows.length[chosen]
        drawn = rows.ids[chosen, (length - 1).clamp(min=0)]
        asked = torch.tensor([self.prompt_ids[p][-1] for p in rows.prompt[chosen].tolist()])
        return torch.where(length > 0, drawn, asked)

    def _ended(self, made: TokenRows, rows: Tensor) -> Tensor:
        """Rows `[A]` whose last token is an end, or completes a stop text."""
        length = made.length[rows]
        ended = torch.isin(made.ids[rows, length - 1], self._end_ids)
        if self.sampling.stop:
            window = stop_window(self.sampling.stop)
            tails = [
                self.model.decode(made.ids[i, max(n - window, 0) : n].tolist())
                for i, n in zip(rows.tolist(), length.tolist(), strict=True)
            ]
            ended |= torch.tensor([any(text in tail for text in self.sampling.stop) for tail in tails])
        return ended

    def _check_branches(self) -> None:
        if not self.model.packs:
            raise RecipeError(
                "this model has layers that read every token in order, so its candidates cannot wait or go back; search "
                "with best_of_n"
            )

    # --- results -----------------------------------------------------------------------------------------------------

    def texts(self, rows: TokenRows) -> list[str]:
        return [self.model.decode(row[:n].tolist()) for row, n in zip(rows.ids, rows.length.tolist(), strict=True)]

    def finished(self, rows: TokenRows) -> Found:
        """Texts, scored."""
        texts = self.texts(rows)
        return self.found(rows, texts, self.score(texts, rows.prompt, self.ids(rows)))

    def ids(self, rows: TokenRows) -> list[list[int]]:
        return [row[:n].tolist() for row, n in zip(rows.ids, rows.length.tolist(), strict=True)]

    def found(self, rows: TokenRows, texts: list[str], score: Tensor) -> Found:
        return Found(outputs=texts, score=score, prompt=rows.prompt, candidate=rows.candidate)

    def sample(self, prompt: Tensor, candidate: Tensor) -> Found:
        with self.untimed(bool((candidate == 0).any())):
            return self.finished(self.drawn(prompt, candidate))

    def drawn(self, prompt: Tensor, candidate: Tensor) -> TokenRows:
        """Whole plain texts, a tile at a time, as `draw_completions` draws them. They cannot be drawn from any further."""
        self.ledger.require("network_calls", prompt, self.longest)
        done = []
        for of in tiles(len(prompt), self.tile):
            state = self.start(prompt[of], candidate[of])
            made, every = _copied(state), torch.arange(len(of))
            for _ in self._draw(made, every, state, torch.full_like(made.length, self.longest), None, PLAIN_STREAM):
                pass
            done.append(made)
        names = ("prompt", "candidate", "ids", "log_prob", "length", "ended")
        whole = {name: torch.cat([getattr(part, name) for part in done]) for name in names}
        return TokenRows(**whole, cache=None, seen=torch.zeros(len(prompt), 0, dtype=torch.bool))


def _copied(rows: TokenRows) -> TokenRows:
    """With tensors of its own to write into."""
    own = {name: getattr(rows, name).clone() for name in ("ids", "log_prob", "length", "ended")}
    return replace(rows, **own, cache=None, logits=None)


def _assembled(made: TokenRows, parts: Sequence[_Pause]) -> TokenRows:
    """The rows with their caches in their order again."""
    order = torch.cat([part.rows for part in parts]).argsort()
    cache, seen = joined([part.cache for part in parts]), stacked([part.seen for part in parts])
    cache.select(order)
    return replace(made, cache=cache, seen=seen[order])
