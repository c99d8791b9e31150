"""The update-selective merge against loops, its limits, and the files that it reads and writes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.reference.token_toys import sums_recipe
from torch import Tensor

from plaudit.errors import DataError
from plaudit.lab.language import WEIGHTS
from plaudit.models.lab_text import LabTokenModel
from plaudit.models.merge import kept_delta, merge_folders, read_weights, selective_merge
from plaudit.train.setup import prepare


def by_loops(base: list[float], trained: list[float], keep: float, scale: float) -> list[float]:
    delta = [b - a for a, b in zip(base, trained, strict=True)]
    order = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
    chosen = set(order[: math.ceil(round(keep * len(delta), 6))])
    return [a + scale * d if i in chosen else a for i, (a, d) in enumerate(zip(base, delta, strict=True))]


def models(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (7, 5), "vector": (11,), "number": ()}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    # One tensor changes a thousand times as much as the others: shares are counted in each by itself.
    sizes = {"matrix": 10.0, "vector": 0.01, "number": 0.01}
    return base, {
        name: value + sizes[name] * torch.randn(value.shape, generator=generator) for name, value in base.items()
    }


@pytest.mark.parametrize(("keep", "scale"), ((0.25, 0.7), (0.07, 1.0), (1.0, 0.3), (0.5, 0.7)))
def test_the_merge_is_the_loops_in_every_tensor(keep: float, scale: float) -> None:
    base, trained = models()
    merged = selective_merge(base, trained, keep=keep, scale=scale)
    for name in base:
        expected = by_loops(base[name].flatten().tolist(), trained[name].flatten().tolist(), keep, scale)
        assert merged[name].flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        changed = int((merged[name] != base[name]).sum())
        assert changed == math.ceil(round(keep * base[name].numel(), 6)) and merged[name].shape == base[name].shape


def test_the_defaults_are_the_papers() -> None:
    base, trained = models()
    assert all(torch.equal(a, b) for a, b in zip(
        selective_merge(base, trained).values(), selective_merge(base, trained, keep=0.25, scale=0.7).values(), strict=True
    ))  # fmt: skip


def test_everything_kept_in_full_is_the_trained_model() -> None:
    base, trained = models()
    merged = selective_merge(base, trained, keep=1, scale=1)
    for name, value in trained.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6)


def test_negative_changes_count_by_their_size_and_equal_ones_in_order() -> None:
    assert kept_delta(torch.tensor([0.1, -3.0, 2.0, -0.2]), 0.5).tolist() == [0, -3, 2, 0]
    assert kept_delta(torch.tensor([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [1, -1, 0, 0]
    assert kept_delta(torch.zeros(4), 0.5).tolist() == [0] * 4


def test_half_precision_is_merged_in_full_and_stored_as_the_trained_model() -> None:
    base, trained = {"w": torch.full((4,), 1.0).half()}, {"w": torch.tensor([1.0004, 1.0, 1.0, 1.0])}
    merged = selective_merge(base, trained, scale=0.5)["w"]
    assert merged.dtype == torch.float32 and merged[0].item() == pytest.approx(1.0002, abs=1e-6)
    assert selective_merge(trained, base)["w"].dtype == torch.float16


def test_models_that_do_not_belong_together_are_refused() -> None:
    base, trained = models()
    with pytest.raises(DataError, match="'extra' is in one of the two models only"):
        selective_merge(base, trained | {"extra": torch.zeros(1)})
    with pytest.raises(DataError, match=r"'vector' has the shapes \(11,\) and \(12,\)"):
        selective_merge(base, trained | {"vector": torch.zeros(12)})
    with pytest.raises(DataError, match="'n' holds integers that differ"):
        selective_merge({"n": torch.tensor([1])}, {"n": torch.tensor([2])})
    assert selective_merge({"n": torch.tensor([1])}, {"n": torch.tensor([1])})["n"].tolist() == [1]
    for changed in ({"keep": 0.0}, {"keep": 1.5}, {"scale": 0.0}):
        with pytest.raises(DataError, match="allowed: more than 0, at most 1"):
            selective_merge(base, trained, **changed)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_merged_run_is_a_model_for_the_next_one(tmp_path: Path) -> None:
    """The shipped weights are in half precision, a run's are not."""
    model = LabTokenModel()
    with torch.no_grad():
        model.network.lm_head.weight.add_(
            torch.linspace(-1, 1, model.network.lm_head.weight.numel()).view_as(model.network.lm_head.weight)
        )
    model.save(tmp_path / "final")
    made = merge_folders(WEIGHTS, tmp_path / "final", tmp_path / "merged")
    assert {path.name for path in made.iterdir()} == {path.name for path in (tmp_path / "final").iterdir()}
    setup = prepare(sums_recipe(tmp_path, {"model": {"weights": str(made / "model.safetensors")}}))
    start = LabTokenModel().network.lm_head.weight
    change = setup.policy.model.network.lm_head.weight - start
    assert 0.2 < float((change.abs() > 1e-3).float().mean()) <= 0.25
    assert change.abs().max().item() == pytest.approx(0.7, abs=1e-3)


def test_the_command_merges_and_says_what_it_cannot(tmp_path: Path) -> None:
    base, trained = models()
    (tmp_path / "shards").mkdir()
    save_file({"matrix": trained["matrix"]}, tmp_path / "shards" / "model-1.safetensors")
    save_file({name: trained[name] for name in ("vector", "number")}, tmp_path / "shards" / "model-2.safetensors")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "shards" / "config.json").write_text("{}")
    save_file(base, tmp_path / "base.safetensors")
    command = [sys.executable, "-m", "plaudit.models.merge", "base.safetensors", "shards", "out", "--scale", "0.5"]
    first, second = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False) for _ in range(2)
    )
    assert first.returncode == 0 and "wrote out" in first.stdout, first.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    expected = selective_merge(base, trained, scale=0.5)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert second.returncode == 1 and "merge: out exists already" in second.stderr
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no safetensors file"):
        read_weights(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot read"):
        read_weights(tmp_path / "absent.safetensors")
