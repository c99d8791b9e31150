"""TRL's trainers as `benchmarks/tokens.py` drives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import Completions
from plaudit.shaping.credit import Credit

PROMPTS, COMPLETIONS, TOKENS, RATE = 4, 4, 32, 1e-6


class Turns(TrainerCallback):
    """Times every step, and lets the other toolkit take its turn after it."""

    def __init__(self, between: Callable[[], None]) -> None:
        self.between, self.seconds, self.drawing = between, list[dict[str, float]](), 0.0
        self.started, self.cpu, self.length = 0.0, 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started, self.cpu, self.drawing = time.perf_counter(), time.process_time(), 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        step = time.perf_counter() - self.started
        row = {"step": step, "draw": self.drawing, "learn": step - self.drawing}
        self.seconds.append({**row, "cpu": time.process_time() - self.cpu, "length": self.length})
        self.between()

    def drawer(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            ids, log_probs = draw(*arguments, **named)
            self.drawing += time.perf_counter() - started
            self.length = sum(map(len, ids)) / len(ids)
            return ids, log_probs

        return timed


def make_trainer(
    output: Path, folder: Path, prompts: Sequence[Prompt], reward: Callable[..., list[float]], **changes: Any
) -> GRPOTrainer:
    args = GRPOConfig(
        **{
            "output_dir": str(output),
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "beta": 0.0,
            "loss_type": "dapo",
            "num_generations": COMPLETIONS,
            "per_device_train_batch_size": PROMPTS * COMPLETIONS,
            "max_completion_length": TOKENS,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "logging_steps": 1000,
            "disable_tqdm": True,
            "use_bias_correction_kl": False,
            **changes,
        }
    )
    rows = [{"prompt": [{"role": "user", "content": prompt.text}], **prompt.facts} for prompt in prompts]
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )


def run_trl(
    output: Path,
    folder: Path,
    prompts: Sequence[Prompt],
    reward: Callable[..., list[float]],
    *,
    steps: int,
    forced: bool,
    checkpointing: bool,
    between: Callable[[], None],
) -> list[dict[str, float]]:
    """Seconds of every step; `between` is called after each."""
    changes: dict[str, Any] = {"generation_kwargs": {"min_new_tokens": TOKENS}} if forced else {}
    trainer = make_trainer(
        output, folder, prompts, reward, max_steps=steps, gradient_checkpointing=checkpointing, **changes
    )
    turns = Turns(between)
    trainer.add_callback(turns)
    trainer._generate_single_turn = turns.drawer(trainer._generate_single_turn)  # type: ignore[method-assign]
    trainer.train()
    return turns.seconds


# --- losses ----------------------------------------------------------------------------------------------------------


def given_batch(size: int, width: int) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Completions of random lengths with random log-probabilities: of the policy that drew (in the batch), of the policy that
    learns, and of the reference."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(size, width, generator=generator)

    length = torch.randint(1, width + 1, (size, 1), generator=generator)
    mask = torch.arange(width) < length
    old = (-noise(1.0).abs() * mask).float()
    samples = Completions(
        prompt_ids=((5,),) * size,
        ids=torch.ones(size, width, dtype=torch.long),
        mask=mask,
        log_prob=old.double(),
        cut=torch.zeros(size, dtype=torch.bool),
        temperature=1.0,
        limit=width,
    )
    yes = torch.ones(size, dtype=torch.bool)
    prompts = tuple(Prompt(id=str(n // COMPLETIONS), text="") for n in range(size))
    batch = Batch(
        samples=samples,
        prompts=prompts,
        keys=tuple(SampleKey(seed=0, step=0, prompt=prompt.id, index=n) for n, prompt in enumerate(prompts)),
        group=torch.arange(size) // COMPLETIONS,
        score=torch.zeros(size),
        scores={},
        credit=Credit(value=torch.randn(size, generator=generator), valid=yes),
        informative=yes,
    )
    return batch, (old + noise(0.2)) * mask, (old + noise(0.3)) * mask


def grpo_loss(
    trainer: GRPOTrainer,
    batch: Batch,
    log_prob: torch.Tensor,
    reference: torch.Tensor,
    loss_type: str,
    level: str,
    beta: float,
) -> tuple[float, torch.Tensor]:
    """TRL's loss with given log-probabilities in place of its model's, and its gradient by them."""
    leaf, mask = log_prob.clone().requires_grad_(), batch.completions.mask
    trainer.loss_type, trainer.importance_sampling_level, trainer.beta = loss_type, level, beta
    trainer.current_gradient_accumulation_steps = 1
    given = (leaf, torch.zeros_like(log_prob), None)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: given  # type: ignore[method-assign]
    inputs = {
        "prompt_ids": torch.ones(len(batch), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(batch), 1, dtype=torch.long),
        "completion_ids": batch.completions.ids,
        "completion_mask": mask.long(),
        "advantages": batch.credit.value,
        "old_per_token_logps": batch.completions.log_prob.float(),
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad


def make_dpo_trainer(output: Path, folder: Path, beta: float) -> DPOTrainer:
    args = DPOConfig(output_dir=str(output), use_cpu=True, bf16=False, report_to=[], beta=beta)
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def dpo_loss(
    trainer: DPOTrainer, mask: torch.Tensor, log_prob: torch.Tensor, reference: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Of pairs `[2P, T]` whose chosen answers come first, after a prompt of one token."""
    leaf = log_prob.clone().requires_grad_()
    zeros = torch.zeros_like(log_prob)
    given = SimpleNamespace(log_probs=leaf * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    trainer.precompute_ref_logps = True
    chosen, rejected = (reference * mask).sum(1).chunk(2)
    inputs = {
        "input_ids": torch.ones(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.ones(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask.long()], dim=1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = trainer._compute_loss(lambda **_: given, inputs, return_outputs=False)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad
