"""Flow-DPO and reward-weighted regression against sums in loops, and pictures on disk as latents."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.reference.toys import ToyFlowModel, gradients, paired_recipe, perturb, png, toy_recipe

from plaudit.errors import DataError, PlauditError, RecipeError
from plaudit.models import latents
from plaudit.models.lab import LabFlowModel
from plaudit.models.latents import LatentCache, encoded
from plaudit.objectives.batch import Batch
from plaudit.objectives.pairs_flow import both_sides, flow_dpo_loss
from plaudit.recipe.load import load
from plaudit.train.feeds import feed
from plaudit.train.setup import Setup, prepare

DPO = {"objective": {"type": "flow_dpo", "beta": 7.0, "times_per_sample": 3}}
RWR = {"objective": {"type": "rwr", "temperature": 0.5, "times_per_sample": 3}}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def moved(folder: Path, *layers: dict) -> tuple[Setup, Batch]:
    """Another policy than its reference, and a batch of pairs."""
    setup = prepare(paired_recipe(folder, *layers))
    perturb(setup.policy.model)
    return setup, feed(setup, 0, 0).batch


def errors(setup: Setup, batch: Batch, name: str) -> np.ndarray:
    """Mean squared velocity errors `[2, P, T]` one at a time, at the points that the terms took."""
    _, terms = setup.objective.terms(setup.policy, batch)
    points, found = terms.forward, []
    with torch.no_grad(), setup.policy.using(name):
        for row in range(len(points.t)):
            condition = both_sides(batch).flow.conditioning.condition.select(points.sample[row : row + 1])
            v = setup.policy.model.velocity(points.x[row : row + 1], points.t[row : row + 1], condition)[0]
            found.append((v - (points.noise[row] - points.x0[row])).square().mean().item())
    return np.array(found).reshape(2, len(batch), -1)


def test_the_loss_of_a_pair_is_by_hand() -> None:
    w, r = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (-0.2, 0.1))
    loss = flow_dpo_loss(w, r, 4.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-4 / 2 * 0.3)))
    loss.backward()
    slope = 2 / (1 + math.exp(0.6))
    assert (w.grad.item(), r.grad.item()) == pytest.approx((slope, -slope))


@pytest.mark.parametrize("schedule", ("constant", "theory"))
def test_flow_dpo_is_the_loops(tmp_path: Path, schedule: str) -> None:
    setup, batch = moved(tmp_path, DPO, {"objective": {"schedule": schedule}})
    terms = setup.objective.terms(setup.policy, batch)
    found = setup.objective.losses(terms).parts["policy"]
    own, reference = (errors(setup, batch, name) for name in ("current", "reference"))
    t = terms[1].forward.t.reshape(2, len(batch), 3)[0].numpy()
    beta = 7.0 * ((1 - t) ** 2 if schedule == "theory" else 1)
    more = own - reference
    np.testing.assert_allclose(found.detach().numpy(), np.log1p(np.exp(beta / 2 * (more[0] - more[1]))), rtol=1e-4)
    assert np.abs(more).max() > 1e-3


def test_rwr_is_the_loops_and_weights_by_score(tmp_path: Path) -> None:
    setup, batch = moved(tmp_path, RWR)
    assert batch.pairs.scores.tolist() == [[0.9, 0.1]] * 6 and batch.pairs.margin.tolist() == [0.8] * 6
    found = setup.objective.losses(setup.objective.terms(setup.policy, batch)).parts["policy"]
    own = errors(setup, batch, "current")
    np.testing.assert_allclose(found.detach().numpy(), math.exp(1.8) * own[0] + math.exp(0.2) * own[1], rtol=1e-4)


def test_both_sides_and_the_reference_share_times_and_noise(tmp_path: Path) -> None:
    setup, batch = moved(tmp_path, DPO)
    _, terms = setup.objective.terms(setup.policy, batch)
    for value in (terms.forward.t, terms.forward.noise):
        chosen, rejected = value.chunk(2)
        assert (
            torch.equal(chosen, rejected)
            and len(torch.unique(chosen.flatten(1) if chosen.ndim > 1 else chosen, dim=0)) == 18
        )
    assert not torch.equal(*terms.forward.x0.chunk(2)) and terms.reference._forward is terms.forward


def test_at_the_reference_the_loss_is_log_two_and_pulls_toward_the_chosen(tmp_path: Path) -> None:
    setup = prepare(paired_recipe(tmp_path, DPO))
    batch = feed(setup, 0, 0).batch

    def slope(given: Batch) -> torch.Tensor:
        setup.policy.model.network.zero_grad()
        losses = setup.objective.losses(setup.objective.terms(setup.policy, given))
        np.testing.assert_allclose(losses.parts["policy"].detach().numpy(), math.log(2), rtol=1e-6)
        losses.parts["policy"].sum().backward()
        return gradients(setup.policy.model)

    pairs = batch.pairs
    swapped = dataclasses.replace(
        batch, samples=dataclasses.replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
    )
    own = slope(batch)
    assert own.norm() > 1e-3
    torch.testing.assert_close(slope(swapped), -own)


def test_latents_of_a_picture_are_encoded_once_and_belong_to_an_encoder(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 60, 128)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (255, 60, 128)).save(tmp_path / "same.png")
    calls = []

    class Counting(ToyFlowModel):
        shift = 0.0

        def latents(self, pictures: torch.Tensor) -> torch.Tensor:
            calls.append(len(pictures))
            return super().latents(pictures) + self.shift

    first = LatentCache(Counting(), tmp_path / "kept")([tmp_path / "a.png", tmp_path / "same.png"])
    assert len(calls) == 2 and torch.equal(first[0], first[1])  # a probe, and one of two equal pictures
    again = LatentCache(Counting(), tmp_path / "kept")([tmp_path / "a.png"])
    assert len(calls) == 3 and torch.equal(again[0], first[0])  # another probe alone
    other = Counting()
    other.shift = 1.0
    torch.testing.assert_close(LatentCache(other, tmp_path / "kept")([tmp_path / "a.png"]), again + 1)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_another_process_may_encode_the_same_picture_meanwhile(tmp_path: Path, monkeypatch) -> None:
    """The other finishes its file when ours is written and not yet in its place."""
    (tmp_path / "a.png").write_bytes(png((255, 60, 128)))
    ask, save, written = [tmp_path / "a.png"], latents.save_file, []

    def overtaken(tensors: dict[str, torch.Tensor], file: Path) -> None:
        save(tensors, file)
        written.append(file)
        if len(written) == 1:
            LatentCache(ToyFlowModel(), tmp_path / "kept")(ask)

    monkeypatch.setattr(latents, "save_file", overtaken)
    ours = LatentCache(ToyFlowModel(), tmp_path / "kept")(ask)
    assert len(written) == 2 and torch.equal(ours, LatentCache(ToyFlowModel(), tmp_path / "kept")(ask))
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".safetensors"]


def test_the_labs_latents_are_what_its_pictures_are_decoded_from() -> None:
    pictures = torch.rand(2, 3, 32, 32)
    model = LabFlowModel("pixels")
    torch.testing.assert_close(model.decode(encoded(model, pictures)), pictures)
    with pytest.raises(RecipeError, match="cannot encode a given picture; use lab/pixels"):
        encoded(LabFlowModel("slots"), pictures)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PlauditError, match="does not train models of family tokens"):
        load(["sums-grpo", DPO, {"train": {"samples_per_prompt": 1}}])
    with pytest.raises(DataError, match="has no `chosen`"):
        prepare(toy_recipe(tmp_path, DPO, {"train": {"samples_per_prompt": 1}}))
    recipe = paired_recipe(tmp_path, RWR)
    file = Path(recipe.prompts.train)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in r.items() if "score" not in k}) + "\n" for r in rows))
    with pytest.raises(DataError, match="has no `score_chosen`"):
        prepare(recipe)
    assert feed(prepare(paired_recipe(tmp_path, DPO)), 0, 0).batch.pairs.margin is not None
