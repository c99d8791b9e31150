"""The lab's language network against transformers' Llama, its cache and masks.

Shape legend: N rows, L columns, S keys, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from plaudit.errors import DataError, RecipeError
from plaudit.lab.language import WEIGHTS, KeyValues, LanguageNetwork, Shape, config, initialise, load_language
from plaudit.lab.sums.grammar import END_ID, PAD_ID, decode, encode
from plaudit.lab.sums.tokenizer import write_tokenizer

CLOSE = {"atol": 1e-5, "rtol": 0}
TEXT = "37+85=37+80=117;117+5=122#122"


def drawn(seed: int = 0, **sizes) -> LanguageNetwork:
    """A network with weights large enough that attention is far from uniform."""
    network = initialise(LanguageNetwork(Shape(**sizes)), torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(5.0 if "norm" not in name else 1.0)
    return network


@pytest.fixture(scope="module")
def network() -> LanguageNetwork:
    return drawn()


def random_ids(*size: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 19, size, generator=torch.Generator().manual_seed(seed))


def below(N: int, L: int, S: int | None = None) -> Tensor:
    """The causal mask of the last L of S columns."""
    S = S or L
    return torch.ones(L, S, dtype=torch.bool).tril(S - L).expand(N, L, S)


def causal_logits(network: LanguageNetwork, ids: Tensor) -> Tensor:
    return network(ids, positions(*ids.shape), below(*ids.shape))


def positions(N: int, L: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + L).expand(N, L)


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", (10_000.0, 500.0))
def test_its_folder_is_a_llama(tmp_path: Path, theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    network = drawn(theta=theta)
    (tmp_path / "config.json").write_text(json.dumps(config(network.shape)))
    save_file(network.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    llama, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(llama).__name__ == "LlamaForCausalLM" and not any(info.values())
    assert set(llama.state_dict()) == set(network.state_dict())
    ids = random_ids(3, 40)
    with torch.no_grad():
        expected, found = llama.eval()(ids).logits, causal_logits(network, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, **CLOSE)


def test_its_gradients_are_llamas(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = drawn(layers=2)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config(network.shape)))
    llama.load_state_dict(network.state_dict())
    ids = random_ids(2, 17)
    logits = causal_logits(network, ids)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    llama(ids, labels=ids).loss.backward()
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(network.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_transformers_reads_the_characters(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "9-3?:;#", "0"):
        assert tuple(tokenizer(text).input_ids) == encode(text)
        assert tokenizer.decode(encode(text)) == text == decode(encode(text))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD_ID, END_ID)
    assert tokenizer.decode([*encode("#12"), END_ID, PAD_ID], skip_special_tokens=True) == "#12"
    assert tokenizer(["1+2", "1"], padding=True).input_ids[1] == [PAD_ID, PAD_ID, *encode("1")]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("3x5")


# --- masks and cache -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", ((11, 1, 1, 1), (1,) * 14, (5, 9), (3, 8, 2, 1)))
@torch.no_grad()
def test_reading_in_pieces_is_reading_at_once(network: LanguageNetwork, pieces: tuple[int, ...]) -> None:
    ids, cache, found, start = random_ids(3, 14), KeyValues(), [], 0
    for size in pieces:
        end = start + size
        found.append(network(ids[:, start:end], positions(3, size, start), below(3, size, end), cache))
        start = end
    assert cache.length == 14
    torch.testing.assert_close(torch.cat(found, dim=1), causal_logits(network, ids), **CLOSE)


@torch.no_grad()
def test_the_cache_grows_past_its_spare_room(network: LanguageNetwork) -> None:
    ids, cache = random_ids(2, 100), KeyValues()
    found = [network(ids[:, i : i + 1], positions(2, 1, i), below(2, 1, i + 1), cache) for i in range(100)]
    torch.testing.assert_close(torch.cat(found, dim=1), causal_logits(network, ids), **CLOSE)


@pytest.mark.parametrize("side", ("left", "right"))
@torch.no_grad()
def test_padding_changes_nothing(network: LanguageNetwork, side: str) -> None:
    ids, pads = random_ids(1, 9), torch.full((1, 4), PAD_ID)
    parts, at = ([pads, ids], slice(4, None)) if side == "left" else ([ids, pads], slice(9))
    padded = torch.cat(parts, dim=1)
    real = torch.zeros(1, 13, dtype=torch.bool)
    real[:, at] = True
    visible = below(1, 13) & real[:, None, :] & real[:, :, None]
    place = (real.cumsum(1) - 1).clamp(min=0)
    found = network(padded, place, visible)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, at], causal_logits(network, ids), **CLOSE)


def test_columns_that_see_nothing_poison_no_gradient(network: LanguageNetwork) -> None:
    ids = random_ids(2, 6)
    visible = below(2, 6).clone()
    visible[0, :3] = False
    visible[0, :, :3] = False
    network.zero_grad()
    network(ids, positions(2, 6), visible)[0, 3:].square().sum().backward()
    grads = [p.grad for p in network.parameters()]
    assert all(g.isfinite().all() for g in grads) and max(g.abs().max() for g in grads) > 0
    network.zero_grad()


@torch.no_grad()
def test_completions_of_one_problem_can_share_a_row(network: LanguageNetwork) -> None:
    start, first, second = (random_ids(1, size, seed=size) for size in (5, 7, 4))
    packed = torch.cat([start, first, second], dim=1)
    visible = below(1, 16).clone()
    visible[:, 12:, 5:12] = False
    place = torch.cat([torch.arange(12), torch.arange(5, 9)])[None]
    found = network(packed, place, visible)
    alone = causal_logits(network, torch.cat([start, first], dim=1))
    other = causal_logits(network, torch.cat([start, second], dim=1))
    torch.testing.assert_close(found[:, :12], alone, **CLOSE)
    torch.testing.assert_close(found[:, 12:], other[:, 5:], **CLOSE)
    assert (network(packed, place, below(1, 16))[:, 12:] - other[:, 5:]).abs().max() > 0.1


@torch.no_grad()
def test_selected_rows_go_on_as_their_own(network: LanguageNetwork) -> None:
    ids, cache = random_ids(3, 8), KeyValues()
    network(ids[:, :5], positions(3, 5), below(3, 5), cache)
    network(ids[:, 5:6], positions(3, 1, 5), below(3, 1, 6), cache)
    rows = torch.tensor([2, 0, 2, 1])
    cache.select(rows)
    more = random_ids(4, 2, seed=9)
    found = [network(more[:, i : i + 1], positions(4, 1, 6 + i), below(4, 1, 7 + i), cache) for i in range(2)]
    expected = causal_logits(network, torch.cat([ids[rows, :6], more], dim=1))[:, 6:]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, **CLOSE)
    assert (expected[0] - expected[2]).abs().max() > 0.1  # copies of one row go separate ways


@torch.no_grad()
def test_kept_columns_are_those_of_all(network: LanguageNetwork) -> None:
    ids = random_ids(2, 9)
    keep = torch.tensor([8, 0, 3])
    found = network(ids, positions(2, 9), below(2, 9), keep=keep)
    torch.testing.assert_close(found, causal_logits(network, ids)[:, keep], **CLOSE)


def test_gradients_pass_through_the_cache() -> None:
    network, ids = drawn(layers=2), random_ids(2, 8)
    causal_logits(network, ids)[:, 3:].square().sum().backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    cache = KeyValues()
    network(ids[:, :3], positions(2, 3), below(2, 3), cache)
    rest = [network(ids[:, i : i + 1], positions(2, 1, i), below(2, 1, i + 1), cache) for i in range(3, 8)]
    torch.cat(rest, dim=1).square().sum().backward()
    for parameter, grad in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, atol=1e-4 * grad.abs().max().item(), rtol=1e-4)


def test_misshapen_masks_are_refused(network: LanguageNetwork) -> None:
    with pytest.raises(DataError, match=r"visible \(1, 4, 4\); .* \(2, 4, 4\)"):
        network(random_ids(2, 4), positions(2, 4), below(1, 4))


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lab build sums"):
        load_language(tmp_path / "none.safetensors")


# --- what ships ------------------------------------------------------------------------------------------------------


def test_the_shipped_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 3_500_000
    assert 1_000_000 <= sum(p.numel() for p in load_language().parameters()) <= 1_500_000
