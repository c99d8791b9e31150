"""The stitch in closed form, what it begins as, what learns and what does not, and its place in a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.search.toys import make_task
from torch import Tensor

from plaudit.builds.stitch import ValuePlan, groups, noised, seam_of, stitched, train, value_loss
from plaudit.errors import RecipeError
from plaudit.lab.encoder_networks import DualEncoder
from plaudit.lab.networks import PixelNetwork
from plaudit.lab.scenes.grammar import MAX_TOKENS, evaluation_prompts
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.encoders.lab import LabEncoder
from plaudit.rewards.learned.stitched import (
    Stitch,
    StitchedValue,
    find_seam,
    fit_linear,
    tower_features,
    tower_tail,
    trunk_features,
)
from plaudit.rewards.suite import load_suite
from plaudit.search.budget import Cost
from plaudit.search.flow.guidance import Guidance
from plaudit.search.flow.lookouts import Preview, StitchedLookout, find_lookout
from plaudit.search.flow.particles import Particles
from plaudit.search.rows import Rows
from plaudit.search.run import run_search

TINY = ValuePlan(steps=4, batch=4, probes=6, warmup=2)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng(seed).standard_normal(shape))


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return LabEncoder().network


@pytest.fixture
def network() -> PixelNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = PixelNetwork(width=32, depth=3, heads=2, base=8)
        torch.nn.init.normal_(made.trunk.adaln.weight, std=0.1)  # else all times look the same
    return made.eval().requires_grad_(False)


@pytest.fixture
def value(encoder: DualEncoder, network: PixelNetwork) -> StitchedValue:
    return stitched(network, encoder, seam_of(network, encoder, TINY, rng()))


# --- closed form -----------------------------------------------------------------------------------------------------


def test_a_planted_map_is_recovered_exactly() -> None:
    planted, f = normal(5, 9), normal(200, 9, seed=1)
    fit = fit_linear(f, f @ planted.T)
    torch.testing.assert_close(fit.weight, planted, rtol=0, atol=1e-12)
    assert fit.residual < 1e-24


def test_the_residual_is_the_share_of_variance_that_is_left() -> None:
    """Against targets that are half planted and half noise; and a constant offset explains nothing without a constant."""
    f, noise = normal(20_000, 4), normal(20_000, 3, seed=1)
    planted = normal(3, 4, seed=2)
    planted /= planted.norm(dim=1, keepdim=True)
    assert fit_linear(f, f @ planted.T + noise).residual == pytest.approx(0.5, abs=0.02)
    assert fit_linear(f, noise).residual == pytest.approx(1.0, abs=0.01)


def test_least_squares_as_by_the_pseudo_inverse() -> None:
    f, g = normal(50, 6), normal(50, 3, seed=1)
    torch.testing.assert_close(fit_linear(f, g).weight, g.T @ torch.linalg.pinv(f.T))


def test_the_pair_with_the_planted_map_is_found() -> None:
    """Also through a coarser grid of the trunk, brought up to the tower's."""
    trunk = [normal(8, 6, 4, 4, seed=i) for i in range(3)]
    planted = normal(5, 6, seed=9)
    raised = F.interpolate(trunk[1], size=(8, 8), mode="bilinear", align_corners=False)
    tower = [normal(8, 5, 8, 8, seed=7), torch.einsum("dc,bchw->bdhw", planted, raised)]
    seam = find_seam(trunk, tower)
    assert (seam.block, seam.layer) == (1, 1) and seam.residuals[1][1] < 1e-20
    torch.testing.assert_close(seam.fit.weight, planted, rtol=0, atol=1e-10)
    assert all(seam.residuals[i][j] > 0.5 for i in range(3) for j in range(2) if (i, j) != (1, 1))


def test_with_slack_an_earlier_block_that_is_nearly_as_good_is_taken() -> None:
    target = normal(64, 3, 4, 4)
    trunk = [target + noise * normal(64, 3, 4, 4, seed=1 + i) for i, noise in enumerate((1.0, 0.101, 0.1))]
    assert [find_seam(trunk, [target], slack).block for slack in (0.0, 0.1, 1000.0)] == [2, 1, 0]


# --- the parts -------------------------------------------------------------------------------------------------------


def test_the_stitch_begins_as_the_linear_map_and_can_leave_it() -> None:
    weight, h = normal(16, 6).float(), normal(2, 6, 4, 4, seed=1).float()
    stitch = Stitch(weight, (8, 8), unit=40.0)
    linear = torch.einsum("dc,bchw->bdhw", weight, h)
    expected = F.interpolate(linear, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(stitch(h), expected, rtol=1e-5, atol=1e-5)
    assert stitch.down.out_channels == 2  # a bottleneck of 1:8
    stitch(h).sum().backward()
    assert stitch.up.weight.grad.abs().sum() > 0  # so the zero does not stay


def test_tower_and_tail_together_are_the_encoder(encoder: DualEncoder) -> None:
    images = noised(3, rng(), torch.rand(3)).images
    for layer, features in enumerate(tower_features(encoder.picture, images)):
        seen = tower_tail(encoder, features, layer)
        torch.testing.assert_close(seen.embedding, encoder.embed_images(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.tokens, encoder.patches(images), rtol=0, atol=1e-5)
    assert len(tower_features(encoder.picture, images)) == len(encoder.picture.layers)


def test_trunk_features_are_the_blocks_own_without_caption(network: PixelNetwork) -> None:
    z, t = normal(2, 3, 32, 32).float(), torch.tensor([0.3, 0.8])
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, g, out: outputs.append(out)) for block in network.trunk.blocks]
    network(z, t, torch.zeros(2, MAX_TOKENS, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    features = trunk_features(network, z, t)
    for one, whole in zip(features, outputs, strict=True):
        assert torch.equal(one.flatten(2).transpose(1, 2), whole[:, -64:])
    assert torch.equal(trunk_features(network, z, t, 1)[1], features[1])
    assert not torch.allclose(trunk_features(network, z, 1 - t)[1], features[1])
    assert not any(block._forward_hooks for block in network.trunk.blocks)


def test_blocks_behind_the_seam_do_not_run(network: PixelNetwork) -> None:
    ran = []
    hook = network.trunk.blocks[2].register_forward_hook(lambda m, g, out: ran.append(1))
    trunk_features(network, normal(1, 3, 32, 32).float(), torch.tensor([0.5]), 1)
    hook.remove()
    assert not ran


# --- training --------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand(value: StitchedValue, network: PixelNetwork, encoder: DualEncoder) -> None:
    batch = noised(3, rng(), torch.tensor([0.2, 0.5, 0.8]))
    clean = tower_tail(encoder, tower_features(encoder.picture, batch.images)[0], 0)
    found = value(network, batch.z, batch.t)
    apart = [(found.embedding[b] - clean.embedding[b]).square().sum() for b in range(3)]
    tokens = [(found.tokens[b] - clean.tokens[b]).square().mean() for b in range(3)]
    torch.testing.assert_close(value_loss(found, clean, 2.0), sum(apart) / 3 + 2 * sum(tokens) / 3)
    assert value_loss(clean, clean, 1.0) == 0 and value_loss(found, clean, 1.0) > 0.1


def test_noising_is_the_forward_process() -> None:
    batch = noised(400, rng(), torch.cat([torch.zeros(200), torch.ones(200)]))
    from plaudit.lab.networks import from_pixel_latents

    torch.testing.assert_close(from_pixel_latents(batch.z[:200]), batch.images[:200], rtol=0, atol=1e-6)
    assert batch.z[200:].std().item() == pytest.approx(1.0, abs=0.01)


def test_stitch_and_tail_learn_and_all_else_stays_frozen(
    value: StitchedValue, network: PixelNetwork, encoder: DualEncoder
) -> None:
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in _parts(value, network, encoder)}
    losses = train(lambda z, t: value(network, z, t), groups(value, TINY), encoder, TINY, rng(1))
    assert len(losses) == TINY.steps and all(np.isfinite(losses))
    after = {name: m.state_dict() for name, m in _parts(value, network, encoder)}
    for name in ("trunk", "reward"):
        assert all(torch.equal(after[name][key], before[name][key]) for key in before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    moved = {key for key in before["value"] if not torch.equal(after["value"][key], before["value"][key])}
    learning = {key for key, parameter in value.named_parameters() if parameter.requires_grad}
    assert moved <= learning and {"stitch.linear.weight", "stitch.up.weight"} <= moved
    assert any("picture_out" in key for key in moved) and any("layers" in key for key in moved)
    assert not any("encoder.text" in key or "stem" in key or "log_scale" in key for key in learning)


def _parts(value: StitchedValue, network: PixelNetwork, encoder: DualEncoder) -> list:
    return [("trunk", network), ("reward", encoder), ("value", value)]


def test_training_lowers_the_loss(encoder: DualEncoder, network: PixelNetwork, value: StitchedValue) -> None:
    plan = ValuePlan(steps=12, batch=8, warmup=2, rate=1e-3, stitch_rate=2.0)
    losses = train(lambda z, t: value(network, z, t), groups(value, plan), encoder, plan, rng(2))
    assert np.mean(losses[-4:]) < np.mean(losses[:2]) - 0.05


# --- in a search -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(encoder: DualEncoder, tmp_path: Path) -> tuple[LabFlowModel, str]:
    model, path = LabFlowModel("pixels"), tmp_path / "value.safetensors"
    model.network.requires_grad_(False)
    stitched(model.network, encoder, seam_of(model.network, encoder, TINY, rng())).save(path)
    return model, str(path)


def make_pixels(model: LabFlowModel, budget: str, count: int = 2, steps: int = 3):
    suite = load_suite({"similar": RewardConfig(type="encoder_similarity")})
    return make_task(model, suite, budget, asked=evaluation_prompts("heldout", count), steps=steps)


@torch.no_grad()
def test_values_come_back_from_the_file_and_count_what_they_cost(saved, encoder: DualEncoder) -> None:
    model, path = saved
    task, lookout = make_pixels(model, "99nfe"), find_lookout(path)
    rows = task.start(torch.tensor([0, 1, 1]), torch.arange(3))
    scores = lookout.scores(task, rows, None, 1)
    assert task.ledger.total == lookout.cost(task) * 3 == Cost(network_calls=3, reward_calls=3)
    texts = [p.text for p in task.prompts_of(rows.prompt)]
    seen = lookout.value(model.network, rows.x, task.times[1].expand(3))
    said = encoder.embed_texts(torch.from_numpy(_ids(texts)))
    torch.testing.assert_close(scores, (seen.embedding * said).sum(-1).double())
    assert scores.std() > 0


def _ids(texts: list[str]) -> np.ndarray:
    from plaudit.lab.scenes.grammar import tokenise

    return tokenise(texts)


def test_the_slope_of_a_value_by_finite_differences(saved) -> None:
    model, path = saved
    task, lookout = make_pixels(model, "9999nfe"), find_lookout(path)
    rows = task.start(torch.tensor([0, 1]), torch.arange(2))
    slope = task.value_and_gradient(rows, lambda part: lookout.worth(task, part, 0.7).value)
    direction = normal(2, 3, 32, 32, seed=3).float()
    direction /= direction.flatten(1).norm(dim=1)[:, None, None, None]
    direction = 0.5 * direction + slope.gradient / slope.gradient.flatten(1).norm(dim=1)[:, None, None, None]
    eps = 0.05

    def at(sign: float) -> Tensor:
        moved = Rows(x=rows.x + sign * eps * direction, prompt=rows.prompt, candidate=rows.candidate)
        with torch.no_grad():
            return lookout.worth(task, moved, 0.7).value

    numeric = (at(1) - at(-1)) / (2 * eps)
    expected = (slope.gradient * direction).flatten(1).sum(1).double()
    torch.testing.assert_close(numeric, expected, rtol=0.05, atol=1e-4)
    assert (expected > 1e-3).all()


@pytest.mark.parametrize(
    ("method", "calls"),
    (
        (Particles(particles=2, alpha=50.0, every=1), 3 * 3 + 2 * 1),
        (Particles(particles=2, proposals=2, share=0.4), 3 * 3 + 2 * 2),
        (Guidance(candidates=2, strengths=(5.0,)), 3 * 3 + 2 * 3),
    ),
)
def test_particles_and_guidance_with_a_stitched_value(saved, method, calls: int) -> None:
    """No previews: the only decodes are those of the results. A look is one more network call."""
    model, path = saved
    task = make_pixels(model, "40nfe")
    result = run_search(task, type(method)(**{**vars(method), "value": path}))
    spent = task.ledger.spent(0)
    assert spent.decodes == len(result.candidates) // 2 == 3 and spent.network_calls == calls
    assert spent.gradient_calls == (6 if isinstance(method, Guidance) else 0)
    assert result.scores.isfinite().all()


def test_generators_without_picture_blocks_and_missing_files_are_refused(saved, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lab's `pixels` generator"):
        StitchedLookout.load(saved[1]).check(
            make_task(LabFlowModel("slots"), None, "9nfe", asked=evaluation_prompts("heldout", 1))
        )
    with pytest.raises(RecipeError, match="does not exist"):
        find_lookout(str(tmp_path / "none.safetensors"))
    with pytest.raises(RecipeError, match="'tweedie' is not known"):
        find_lookout("tweedie")
    assert isinstance(find_lookout("preview"), Preview)
