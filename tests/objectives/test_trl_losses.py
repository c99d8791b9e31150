"""Token losses against TRL's trainers: on the same completions and weights, the same loss and the same gradient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from datasets import Dataset
from tests.models.tiny_causal import build
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from plaudit.data.prompt import Prompt
from plaudit.models.causal import CausalTokenModel
from plaudit.objectives.batch import Batch, Pairs
from plaudit.objectives.dpo import Dpo
from plaudit.objectives.grpo import Grpo
from plaudit.recipe.objectives import DpoConfig, GrpoConfig, KlConfig
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import Completions, chosen_log_probs, given_completions, replay_logits
from plaudit.shaping.credit import Credit
from plaudit.train.learn import accumulate
from plaudit.train.trainable import Policy

TEMPERATURE, LIMIT = 0.8, 11
PROMPTS = ((9, 20, 31, 44, 7), (9, 20, 31, 44, 7), (12, 90))
LENGTHS = (7, 1, 4)
ADVANTAGES = (1.5, -0.7, 0.4)
LOSS_TYPES = {"grpo": "grpo", "bnpo": "dapo", "dapo": "dapo", "dr_grpo": "dr_grpo", "luspo": "luspo"}  # TRL's to ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama"))


def load_network(folder: Path, shift: float = 0.0) -> Any:
    """The network, or one that is `shift` away from it; without dropout, which TRL leaves on."""
    network = AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += shift * torch.randn(parameter.shape, generator=generator)
    return network


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random completions `[B, T]` and their mask."""
    ids = torch.randint(5, 260, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def completions(ids: Tensor, mask: Tensor, log_prob: Tensor) -> Completions:
    cut = torch.zeros(len(ids), dtype=torch.bool)
    return Completions(
        prompt_ids=PROMPTS, ids=ids, mask=mask, log_prob=log_prob, cut=cut, temperature=TEMPERATURE, limit=LIMIT
    )


def naive_log_probs(network: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """One sample at a time, with the stock network."""
    found = torch.zeros(mask.shape, dtype=torch.float64)
    for n, (prompt, row, here) in enumerate(zip(PROMPTS, ids, mask, strict=True)):
        answer = row[here]
        with torch.no_grad():
            logits = network(input_ids=torch.cat([torch.tensor(prompt), answer])[None]).logits[0]
        log_probs = (logits.double() / TEMPERATURE).log_softmax(1)[len(prompt) - 1 : -1]
        found[n, : len(answer)] = log_probs.gather(1, answer[:, None])[:, 0]
    return found


def make_batch(samples: Completions | Pairs, size: int = len(PROMPTS)) -> Batch:
    yes = torch.ones(size, dtype=torch.bool)
    return Batch(
        samples=samples,
        prompts=tuple(Prompt(id=str(p), text="") for p in PROMPTS[:size]),
        keys=tuple(SampleKey(seed=0, step=0, prompt=str(p), index=i) for i, p in enumerate(PROMPTS[:size])),
        group=torch.tensor([0, 0, 1])[:size],
        score=torch.zeros(size),
        scores={},
        credit=Credit(value=torch.tensor(ADVANTAGES)[:size], valid=yes),
        informative=yes,
    )


def gradients(network: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def left_padded() -> tuple[Tensor, Tensor]:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in PROMPTS])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])


def check_same(loss: float, theirs: float, own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert loss == pytest.approx(theirs, abs=1e-5)
    assert abs(theirs) > 1e-3
    assert own.keys() == other.keys()
    assert max(value.abs().max() for value in other.values()) > 1e-2
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-4)


def trl_grpo(folder: Path, output: Path, **changes: Any) -> GRPOTrainer:
    args = GRPOConfig(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        report_to=[],
        num_generations=3,
        per_device_train_batch_size=3,
        max_completion_length=LIMIT,
        temperature=TEMPERATURE,
        use_bias_correction_kl=False,  # its k3 times the ratio is another estimate
        **changes,
    )
    trainer = GRPOTrainer(
        model=load_network(folder, shift=0.02),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 3),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo(loss_type: str, level: Any, beta: float, folder: Path, tmp_path: Path) -> None:
    """Off-policy, so that some ratios are clipped on either side. dapo over one update is TRL's bnpo."""
    pack, micro_batch = (64, 3) if beta else (0, 2)
    clip = {"epsilon": 0.1, "epsilon_high": 0.15}
    trainer = trl_grpo(folder, tmp_path, loss_type=loss_type, importance_sampling_level=level, beta=beta, **clip)
    ids, mask = draw()
    old, reference = (naive_log_probs(load_network(folder, shift), ids, mask) for shift in (-0.01, 0.0))
    prompt_ids, prompt_mask = left_padded()
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": ids.masked_fill(~mask, 0),
        "completion_mask": mask.long(),
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": old.float(),
        "ref_per_token_logps": reference.float(),
        "num_items_in_batch": mask.sum(),
    }
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()

    model = CausalTokenModel(load_network(folder), trainer.processing_class)
    policy = Policy(model)
    policy.take("reference")
    model.network.load_state_dict(load_network(folder, shift=0.02).state_dict())
    config = GrpoConfig(
        type="grpo",
        clip_low=0.1,
        clip_high=0.15,
        importance_sampling_level=level,
        loss_type=LOSS_TYPES[loss_type],  # type: ignore[arg-type]
        kl=KlConfig(weight=beta, scaling="k3"),
    )
    sums = accumulate(policy, Grpo(config, pack), make_batch(completions(ids, mask, old)), micro_batch)
    loss = sums.totals["loss/policy"] + sums.totals.get("loss/kl", 0.0)
    check_same(loss, theirs.item(), gradients(model.network), gradients(trainer.model))
    if level == "token":
        ratio = (naive_log_probs(model.network, ids, mask) - old).exp()[mask]
        assert (ratio > 1.15).any()
        assert (ratio < 0.9).any()
    assert ("loss/kl" in sums.totals) == (beta > 0)


@pytest.mark.parametrize(("smoothing", "pairs"), [(0.0, 3), (0.2, 1)])
@pytest.mark.parametrize("pack", [0, 64])
def test_dpo(smoothing: float, pairs: int, pack: int, folder: Path, tmp_path: Path) -> None:
    """TRL smooths labels only in the losses that sort a batch, and in a batch of one there is nothing to sort."""
    kind, beta = ("aot" if smoothing else "sigmoid"), 0.3
    prompts = PROMPTS[:pairs]
    (chosen, chosen_mask), (rejected, rejected_mask) = draw(1), draw(2)
    answers = [
        [tuple(row[here].tolist()) for row, here in zip(ids[:pairs], mask, strict=False)]
        for ids, mask in ((chosen, chosen_mask), (rejected, rejected_mask.flip(0)))
    ]
    args = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], beta=beta, loss_type=[kind], label_smoothing=smoothing
    )  # fmt: skip
    trainer = DPOTrainer(
        model=load_network(folder, shift=0.02),
        ref_model=load_network(folder),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    rows = [list(prompt + answer) for half in answers for prompt, answer in zip(prompts, half, strict=True)]
    starts = [len(prompt) for prompt in prompts] * 2
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "completion_mask": torch.tensor(
            [[0] * n + [1] * (len(row) - n) + [0] * (width - len(row)) for row, n in zip(rows, starts, strict=True)]
        ),
    }
    theirs = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    theirs.backward()

    model = CausalTokenModel(load_network(folder), trainer.processing_class)
    policy = Policy(model)
    policy.take("reference")
    model.network.load_state_dict(load_network(folder, shift=0.02).state_dict())
    samples = Pairs(chosen=given_completions(prompts, answers[0]), rejected=given_completions(prompts, answers[1]))
    config = DpoConfig(type="dpo", beta=beta, label_smoothing=smoothing)
    batch = make_batch(samples, size=pairs)
    sums = accumulate(policy, Dpo(config, pack), batch, micro_batch=2)
    check_same(sums.totals["loss/policy"], theirs.item(), gradients(model.network), gradients(trainer.model))


def test_replay_is_the_stock_log_probability(folder: Path) -> None:
    model = CausalTokenModel(load_network(folder), AutoTokenizer.from_pretrained(folder))
    ids, mask = draw()
    samples = completions(ids, mask, torch.zeros(mask.shape, dtype=torch.float64))
    expected = naive_log_probs(copy.deepcopy(model.network), ids, mask)
    for pack in (0, 8, 64):
        found = chosen_log_probs(replay_logits(model, samples, pack), samples).detach()
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
