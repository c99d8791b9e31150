"""Folders of weights that lack something: refused, whatever reads them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.reference.toys import ToyFlowModel, keys, prompts

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError, RecipeError
from plaudit.models.build import build_model
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import Condition, decoded
from plaudit.models.loading import must_be_there
from plaudit.recipe.models import DottedModel, LabModel, Sd3Model, TransformersModel
from plaudit.recipe.sampling import EvaluationSampler, Sampler
from plaudit.sampling.drawers import make_drawer


def lacks(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def has_more(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"{name}.more"] = torch.zeros(3)


def has_another_shape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:-1].clone()


CHANGES = [
    (lacks, "lacks? 1 tensor"),
    (has_more, "ha(s|ve) beside .*1 tensor"),
    (has_another_shape, "in another shape 1 tensor"),
]


def change(file: Path, how: Any, name: str) -> str:
    """Damage the first tensor whose name ends in `name`; returns all of it."""
    tensors = load_file(file)
    whole = sorted(key for key in tensors if key.endswith(name))[0]
    how(tensors, whole)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    return whole


def refused(config: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build_model(config)


@pytest.mark.parametrize(("how", "said"), CHANGES)
@pytest.mark.parametrize("name", ["slots", "sums"])
def test_weights_of_the_lab(how: Any, said: str, name: str, tmp_path: Path) -> None:
    model = build_model(LabModel(name=name))
    model.save(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    build_model(LabModel(name=name, weights=str(file)))
    whole = change(file, how, "weight")
    refused(LabModel(name=name, weights=str(file)), f"model.weights: .*{said}s? .*{re.escape(whole)}")


@pytest.mark.parametrize("content", [b"", b"rubbish" * 40])
@pytest.mark.parametrize("name", ["slots", "sums"])
def test_weights_that_are_no_safetensors(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(LabModel(name=name, weights=str(tmp_path / "x.safetensors")), "model.weights: .* is no safetensors file")


@pytest.mark.parametrize(("how", "said"), CHANGES)
@pytest.mark.parametrize("tied", [True, False])
def test_folders_of_transformers(how: Any, said: str, tied: bool, tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("transformers")
    from tests.models.tiny_causal import SMALL, build_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**SMALL, "tie_word_embeddings": tied})
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    read = TransformersModel(type="transformers", path=str(tmp_path))
    capfd.readouterr()
    build_model(read)  # tied weights are not missing
    assert not capfd.readouterr().err
    whole = change(tmp_path / "model.safetensors", how, "down_proj.weight")
    refused(read, f"model.path: .*{said}s .*{re.escape(whole)}")


@pytest.mark.parametrize(("how", "said"), CHANGES)
@pytest.mark.parametrize(
    ("part", "name"), [("transformer", "to_q.weight"), ("vae", "conv_in.weight"), ("text_encoder_3", "wo.weight")]
)
def test_pipelines_of_diffusers(how: Any, said: str, part: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.models.tiny_sd3 import build

    path = build(tmp_path)
    change(next((path / part).glob("*.safetensors")), how, name)
    refused(Sd3Model(type="sd3", path=str(path), height=32, width=32), f"model.path: .*{part}.*{said}s .*{name}")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.models.tiny_causal import SMALL, build_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    refused(
        TransformersModel(type="transformers", path=str(tmp_path)),
        r"(?s)pytorch_model.bin is a pickle, and none is read: convert it where you trust it, with .*save_pretrained",
    )


@pytest.mark.parametrize("kind", ["transformers", "sd3"])
@pytest.mark.parametrize("path", ["mistyped", "owner/mistyped", "no good name!", "./mistyped", "a/b/c"])
def test_a_mistyped_folder_is_asked_for_once(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    import huggingface_hub

    asked = []

    def no_network(name: str, **_: Any) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "model_info", no_network)
    config = Sd3Model(type="sd3", path=path) if kind == "sd3" else TransformersModel(type="transformers", path=path)
    refused(config, f"model.path: '{re.escape(path)}' does not exist; give a folder that does, or a hub name")
    assert asked == ([path] if path in ("mistyped", "owner/mistyped") else [])


def test_the_log_is_as_loud_as_before(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    before = logging.getLogger("transformers").level
    refused(TransformersModel(type="transformers", path=str(tmp_path)), "holds no model")
    assert logging.getLogger("transformers").level == before


class Odd(ToyFlowModel):
    """A model whose conditions are not what they should be."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def encode(self, prompts: Any) -> Condition:
        if self.how == "raises":
            raise IndexError("no such\nembedding")
        if self.how == "rows":
            return Condition(tensors={"ids": torch.zeros(len(prompts) + 1, 2)})
        return Condition.cat([Condition(tensors={"ids": torch.zeros(1, len(p.text))}) for p in prompts])

    def decode(self, x0: Any) -> torch.Tensor:
        return torch.zeros(2, 8, 3, 4, 4)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", r"Odd.encode raised IndexError: no such embedding \(test_loading.py:\d+\)"),
        ("rows", r"Odd.encode gave `ids` of shape \(3, 2\) for 2 prompts; expected one row for each"),
        ("ragged", r"encode gave `ids` in the shapes \(1,\), \(2,\); all prompts need one: pad to a fixed length"),
    ],
)
def test_conditions_that_do_not_fit(how: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        PromptEncoder(Odd(how))([Prompt(id="a", text="a"), Prompt(id="b", text="bb")], 1.0)


def test_ragged_conditions_of_two_steps() -> None:
    encode = PromptEncoder(Odd("ragged"))
    encode([Prompt(id="a", text="a")], 1.0)
    with pytest.raises(RecipeError, match="all prompts need one"):
        encode([Prompt(id="a", text="a"), Prompt(id="b", text="bb")], 1.0)


def test_a_clip_is_refused() -> None:
    with pytest.raises(
        RecipeError,
        match=r"shape \(2, 8, 3, 4, 4\) for 2 latents; pictures are \[2, 3, H, W\], and clips are not supported",
    ):
        decoded(Odd("clip"), torch.zeros(2, 3))


def broken(size: int) -> None:
    raise OSError(f"no weights\nof size {size}")


def test_a_factory_that_raises() -> None:
    refused(
        DottedModel(type="custom", factory=f"{__name__}:broken", arguments={"size": 3}),
        r"model.factory: .*:broken, called with model.arguments size, raised OSError: no weights of size 3 "
        r"\(test_loading.py:\d+\)",
    )
    refused(
        DottedModel(type="custom", factory=f"{__name__}:broken"), "called without arguments, raised TypeError: .*'size'"
    )


def test_a_picture_in_a_chat_is_refused() -> None:
    pytest.importorskip("transformers")
    from tests.models.tiny_causal import build_tokenizer

    from plaudit.models.chat import ChatText

    text = ChatText(tokenizer=build_tokenizer(), chat=True, system=None, end_ids=frozenset({2}))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    with pytest.raises(DataError, match="prompt 'p': message 1 has a part 'image'"):
        text.encode(Prompt(id="p", text="what?", inputs={"messages": messages}))


class Wrong(ToyFlowModel):
    """A flow model with one member that gives something else."""

    def __init__(self, member: str, given: Any) -> None:
        super().__init__()
        setattr(self, member, lambda *_: given)


@pytest.mark.parametrize(
    ("member", "given", "said"),
    [
        ("velocity", torch.zeros(2, 3), r"velocity gave \[2, 3\] for latents \[2, 3, 2, 2\]; both must have one shape"),
        ("velocity", None, "velocity gave NoneType for latents"),
        ("encode", torch.zeros(2, 3), r"encode gave a Tensor; it must be a Condition"),
        (
            "encode",
            Condition(tensors={"a": [1, 2]}),
            r"encode gave a Condition; it must be a Condition of named tensors",
        ),
        ("decode", torch.zeros(2, 12), r"decode gave outputs of the shape \(2, 12\) for 2 latents"),
        ("decode", torch.full((2, 3, 4, 4), 1.5), r"decode gave pixels from 1.5 to 1.5; pictures lie in 0..1"),
        ("schedule", torch.linspace(1, 0, 10), r"schedule\(10, None\) gave .*a tensor of 11 times that fall from 1"),
        ("schedule", torch.linspace(0, 1, 11), r"schedule\(10, None\) gave .*that fall from 1"),
    ],
)
def test_members_that_give_something_else(member: str, given: Any, said: str) -> None:
    drawer = make_drawer(Wrong(member, given), Sampler(), EvaluationSampler())
    with pytest.raises(RecipeError, match=said) as refused:
        drawer.evaluation(prompts(2), keys(2))
    assert "\n" not in str(refused.value)


def test_a_hub_that_does_not_answer_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever library the hub's client asks with."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    def silent(*arguments: object, **options: object) -> None:
        raise HTTPError("no route to host")

    monkeypatch.setattr(huggingface_hub, "model_info", silent)
    with pytest.raises(RecipeError, match="does not exist; give a folder that does, or a hub name"):
        must_be_there("owner/mistyped")
