"""Noise-aware rewards, how they are trained, and the simulator that schedules are compared with."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from tests.reference.search import best
from tests.search.toys import CountingModel, Green, make_task

from plaudit.audit.pruning import bootstrap, reward_tensors, simulate_pruning
from plaudit.builds.previews import (
    PreviewPlan,
    Previews,
    RewardTensor,
    draw_previews,
    predicted,
    rank_correlation,
    train,
)
from plaudit.errors import RewardError
from plaudit.lab.scenes.grammar import evaluation_prompts, tokenise
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.learned.noise_aware import UNCHANGED, NoiseAware, from_proxy, load_previews
from plaudit.rewards.learned.proxy import SceneProxy
from plaudit.rewards.suite import load_suite
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.search.budget import Cost
from plaudit.search.flow.lookouts import noise_aware
from plaudit.search.flow.prune import Plan, Prune
from plaudit.search.flow.steps import score_total
from plaudit.search.run import run_search

PROXY = {"proxy": RewardConfig(type="scene_proxy")}


def pictures(count: int):
    asked = evaluation_prompts("heldout", count)
    return [prompt.text for prompt in asked], rasterise(sample_scenes(asked, np.random.default_rng(4)))


# --- the network -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_untrained_it_is_the_proxy_at_every_time() -> None:
    captions, shown = pictures(6)
    expected, network = SceneProxy()(captions, shown), NoiseAware(from_proxy().eval())
    for t in (0.9, 0.5, 0.1):
        torch.testing.assert_close(network(captions, shown, t), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_trained_it_knows_the_time_and_leaves_clean_previews_to_the_proxy() -> None:
    captions, shown = pictures(6)
    network, expected = NoiseAware(load_previews("pixels")), SceneProxy()(captions, shown)
    assert torch.equal(network(captions, shown, UNCHANGED), expected)
    early, late = network(captions, shown, 0.9), network(captions, shown, 0.8)
    assert (early - late).abs().max() > 0.02 and (late - expected).abs().max() > 1e-3
    alone = torch.cat([network(captions[i : i + 1], shown[i : i + 1], 0.9) for i in range(6)])
    torch.testing.assert_close(alone, early, rtol=0, atol=1e-5)  # matrix products round differently in other shapes


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RewardError, match=r"previews 'pixel': .* allowed: none, pixels, or a file"):
        load_previews("pixel")


# --- training --------------------------------------------------------------------------------------------------------


def test_previews_are_those_of_the_samplers_own_path() -> None:
    """The first preview is one step from noise; the target is what the proxy says of the end."""
    model, asked = LabFlowModel("slots"), evaluation_prompts("heldout", 3)
    data = draw_previews(model, [*asked, asked[0]], 10, -90, 0)
    assert data.times.tolist() == pytest.approx([0.9, 0.8]) and data.pictures.shape == (4, 2, 3, 32, 32)
    task = make_task(model, load_suite(PROXY), "99nfe", asked=asked, steps=10)
    with torch.no_grad():
        rows = task.start(torch.arange(3), torch.zeros(3, dtype=torch.long))
    rows = rows.at(
        gaussian([SampleKey(seed=0, step=-90, prompt=p.id, index=0) for p in asked], "initial", model.latent_shape)
    )
    with torch.no_grad():
        target = task.finished(task.finish(rows)).score
        for k, t in enumerate(task.times[:3]):
            v = task.velocity(rows, t)
            if k:
                shown = task.preview(rows, v, t)
                assert (data.pictures[:3, k - 1].float() / 255 - shown).abs().max() < 0.51 / 255
            rows = rows.at(rows.x - (t - task.times[k + 1]) * v)
    torch.testing.assert_close(data.target[:3].double().sigmoid(), target.clamp(1e-4, 1 - 1e-4), rtol=0, atol=1e-5)
    assert not torch.equal(data.pictures[0], data.pictures[3]) and torch.equal(data.ids[0], data.ids[3])


def test_training_learns_what_a_preview_tells_and_repeats_bit_for_bit() -> None:
    """Previews that are dimmed by a known factor per step: the frozen proxy, which likes brightness, misjudges them."""
    captions, shown = pictures(40)
    dim = torch.tensor([0.5, 0.8])
    stacked = (shown[:, None] * dim[None, :, None, None, None] * 255).to(torch.uint8)
    target = torch.logit(SceneProxy()(captions, shown), eps=1e-4).float()
    data = Previews(
        pictures=stacked, times=torch.tensor([0.8, 0.4]), ids=torch.from_numpy(tokenise(captions)), target=target
    )
    plan = PreviewPlan(steps_per_stage=25, batch=20)
    networks = [from_proxy().train() for _ in range(2)]
    losses = [train(network, data, plan, np.random.default_rng(0)) for network in networks]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in networks), strict=True))
    error = [(predicted(network, data) - target[:, None]).square().mean(0) for network in (from_proxy(), networks[0])]
    assert (error[1] < 0.5 * error[0]).all()


@torch.no_grad()
def test_the_shipped_weights_know_early_which_final_pictures_will_score_high() -> None:
    """Held-out captions, noise that no training saw, ranks over all of them. The gain among the seeds of one caption is
    smaller than so few pictures could tell; `benchmarks/search_pruning.py` measures it."""
    model, asked = LabFlowModel("pixels"), evaluation_prompts("heldout", 12)
    task = make_task(model, load_suite(PROXY), "9999nfe", asked=asked, steps=10, seed=5)
    found = reward_tensors(task, 4, {"naive": score_total, "aware": noise_aware("pixels")})
    together = {
        name: rank_correlation(RewardTensor(steps=one.steps.reshape(1, 48, 10), final=one.final.reshape(1, 48)))
        for name, one in found.items()
    }
    assert together["aware"][1] > together["naive"][1] and together["aware"][2] > together["naive"][2]
    assert torch.equal(found["aware"].final, found["naive"].final)
    torch.testing.assert_close(found["aware"].steps[:, :, 3:], found["naive"].steps[:, :, 3:])


# --- in the search ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pruning_with_noise_aware_weights_counts_one_call_per_preview_and_follows_them() -> None:
    model, asked = LabFlowModel("slots"), evaluation_prompts("heldout", 2)
    plan = Plan(at=(1,), keep=(0.5,))
    suite = load_suite({**PROXY, "match": RewardConfig(type="scene_match")}, "0.5 * proxy + 0.5 * match")
    task = make_task(model, suite, "9999nfe", asked=asked, steps=4)
    result = run_search(task, Prune(seeds=6, at=plan.at, keep=plan.keep, previews="pixels"))
    assert task.ledger.spent(0) == Cost(network_calls=4 + 12 + 6, decodes=1 + 6 + 3, reward_calls=2 + 6 + 6)
    tensor = reward_tensors(make_task(model, suite, "9999nfe", asked=asked, steps=4), 6, {"a": noise_aware("pixels")})[
        "a"
    ]
    for p in range(2):
        expected = {i + 1 for i in best(tensor.steps[p, :, 1].tolist(), 3)}
        assert {c.candidate for c in result.candidates if c.prompt == p} == expected | {0}


# --- the simulator ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("plan", (Plan(at=(1, 3), keep=(0.4, 0.5)), Plan(at=(), keep=())), ids=("pruned", "best of n"))
def test_the_simulator_chooses_what_the_search_chooses(plan: Plan) -> None:
    model = CountingModel()
    tensor = reward_tensors(make_task(model, Green(), "9999nfe"), 12, {"green": score_total})["green"]
    chosen = simulate_pruning(tensor, plan, torch.arange(12).expand(3, 12))
    result = run_search(make_task(model, Green(), "9999nfe"), Prune(seeds=12, at=plan.at, keep=plan.keep))
    for p in range(3):
        searched = max((c for c in result.candidates if c.prompt == p and c.candidate), key=lambda c: c.score)
        assert chosen[p] == searched.candidate - 1
        assert tensor.final[p, chosen[p]].item() == pytest.approx(searched.score, abs=1e-6)


def test_the_bootstrap_against_all_subsets() -> None:
    """Best of 2 out of 4, over all six pairs; and a preview that is right or wrong about it."""
    final = torch.tensor([[0.1, 0.4, 0.2, 0.8]]).double()
    pairs = [(a, b) for a, b in product(range(4), repeat=2) if a != b]
    for sign, pick in ((1, max), (-1, min)):
        tensor = RewardTensor(steps=sign * final[:, :, None], final=final, gold=-final)
        expected = np.mean([pick(final[0, a].item(), final[0, b].item()) for a, b in pairs])
        found = bootstrap(tensor, Plan(at=(0,), keep=(0.5,)), 2, 4000, np.random.default_rng(0))
        assert found.reward.item() == pytest.approx(expected, abs=0.015)
        assert found.gold.item() == pytest.approx(-expected, abs=0.015)
    with pytest.raises(ValueError, match="5 seeds of a tensor with 4"):
        bootstrap(tensor, Plan(at=(), keep=()), 5, 1, np.random.default_rng(0))


def test_rank_correlation_against_another_library() -> None:
    stats = pytest.importorskip("scipy.stats")
    draws = torch.Generator().manual_seed(0)
    final = torch.randint(0, 5, (6, 9), generator=draws).double()
    steps = torch.stack([final + s * torch.randn(6, 9, generator=draws) for s in (0.1, 1.0, 10.0)], dim=2)
    steps[..., 2] = steps[..., 2].round()
    found = rank_correlation(RewardTensor(steps=steps, final=final))
    for s in range(3):
        expected = np.mean([stats.spearmanr(steps[p, :, s], final[p]).statistic for p in range(6)])
        assert found[s].item() == pytest.approx(expected, abs=1e-9)
    constant, lost = final.clone(), final.clone()
    constant[0], lost[1, 3] = 1.0, torch.nan
    kept = rank_correlation(RewardTensor(steps=steps[1:], final=final[1:]))
    torch.testing.assert_close(rank_correlation(RewardTensor(steps=steps, final=constant)), kept)
    left = torch.tensor([0, 2, 3, 4, 5])
    torch.testing.assert_close(
        rank_correlation(RewardTensor(steps=steps, final=lost)),
        rank_correlation(RewardTensor(steps=steps[left], final=final[left])),
    )
