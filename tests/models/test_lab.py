"""The lab's generators as models: what is saved loads, with and without adapters."""

from __future__ import annotations

from pathlib import Path

import torch

from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.models.lab import LabFlowModel
from plaudit.models.lora import add_lora
from plaudit.recipe.models import LoraConfig


def test_saved_weights_load_as_model_weights_with_adapters_merged(tmp_path: Path) -> None:
    model = LabFlowModel("slots")
    add_lora(model, LoraConfig(rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save(tmp_path)
    again = LabFlowModel("slots", str(tmp_path / "slots.safetensors"))
    x, t = torch.randn(5, 4, 10), torch.rand(5)
    condition = model.encode(evaluation_prompts("heldout", 5))
    trained, base = model.velocity(x, t, condition), LabFlowModel("slots").velocity(x, t, condition)
    torch.testing.assert_close(again.velocity(x, t, condition), trained, rtol=0, atol=1e-5)
    assert (trained - base).abs().max() > 1e-2
