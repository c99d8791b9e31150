"""What an objective may ask for of a token model, computed when it is first read and only then.

Shape legend: B samples, T tokens, M tokens of all samples together, V vocabulary.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.estimates import kl_estimate
from plaudit.sampling.tokens import Completions, chosen_log_probs, entropies, replay_logits, spread


class TokenPolicyTerms:
    """One policy's view of completions."""

    def __init__(self, policy: SnapshotPolicy, name: str, completions: Completions, pack: int) -> None:
        self._policy, self._name, self.completions, self._pack = policy, name, completions, pack

    def _replayed(self) -> Tensor:
        if self._name == "current":
            return replay_logits(self._policy.model, self.completions, self._pack)
        with torch.no_grad(), self._policy.using(self._name):
            return replay_logits(self._policy.model, self.completions, self._pack)

    @functools.cached_property
    def logits(self) -> Tensor:
        """Tempered logits `[M, V]` that the tokens were drawn from."""
        return self._replayed()

    @functools.cached_property
    def log_prob(self) -> Tensor:
        """Log-probabilities `[B, T]` of the tokens, float64; 0 where there is none. A snapshot's logits are not kept for it."""
        kept = self._name == "current" or "logits" in self.__dict__
        return chosen_log_probs(self.logits if kept else self._replayed(), self.completions)

    @property
    def entropy(self) -> Tensor:
        """`[B, T]`, without gradient."""
        return entropies(self.logits, self.completions)


class TokenTerms(TokenPolicyTerms):
    """The current policy's terms, and by name those of its snapshots."""

    def __init__(self, policy: SnapshotPolicy, batch: Batch, pack: int, completions: Completions | None = None) -> None:
        super().__init__(policy, "current", completions or batch.completions, pack)
        self.batch = batch
        self._views: dict[str, TokenPolicyTerms] = {}

    def snapshot(self, name: str) -> TokenPolicyTerms:
        if name not in self._views:
            self._views[name] = TokenPolicyTerms(self._policy, name, self.completions, self._pack)
        return self._views[name]

    @property
    def reference(self) -> TokenPolicyTerms:
        return self.snapshot("reference")

    def of(self, completions: Completions) -> TokenTerms:
        """The same policies' view of other completions that belong to the same samples."""
        return TokenTerms(self._policy, self.batch, self._pack, completions)

    def kl(self, scaling: str) -> Tensor:
        """KL to the reference `[B, T]`: over the vocabulary, where what cannot be drawn adds nothing, or estimated from the
        drawn tokens."""
        if scaling != "exact":
            return kl_estimate(self.log_prob - self.reference.log_prob, scaling)
        own, reference = self.logits.log_softmax(1), self.reference.logits.log_softmax(1)
        change = torch.where(own > -torch.inf, own - reference, 0.0)
        return spread((own.exp() * change).sum(1).double(), self.completions)
