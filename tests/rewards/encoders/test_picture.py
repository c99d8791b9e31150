"""Real pictures and English: the frozen towers, and what the projections learnt of emoji."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.rewards.encoders.gradients import check_picture_gradient
from tests.rewards.encoders.needs import needs_pictures

from plaudit.errors import DataError
from plaudit.rewards.encoders.base import resized

pytestmark = needs_pictures


def drawing(kind: str) -> torch.Tensor:
    """A 112 x 112 picture as simple as an emoji."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 112), torch.linspace(-1, 1, 112), indexing="ij")
    disc, heart = x**2 + y**2 < 0.7, (x**2 + y**2 - 0.5) ** 3 + x**2 * y**3 < 0
    where, colour = {
        "red circle": (disc, (0.9, 0.1, 0.15)),
        "blue circle": (disc, (0.1, 0.35, 0.9)),
        "red heart": (heart, (0.9, 0.1, 0.15)),
        "black square": ((x.abs() < 0.75) & (y.abs() < 0.75), (0.05, 0.05, 0.05)),
    }[kind]
    return torch.where(where, torch.tensor(colour)[:, None, None], torch.ones(3, 112, 112))


def test_mobilenet_is_the_published_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names, the number of parameters, and tensors that survive the conversion bit by bit."""
    from plaudit.rewards.encoders import mobilenet

    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path))
    network = mobilenet.load_mobilenet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_504_872
    original = torch.load(mobilenet.mobilenet_file(), map_location="cpu", weights_only=True)
    kept = load_file(mobilenet.converted_weights())
    assert kept.keys() == original.keys() and all(torch.equal(kept[key], original[key]) for key in kept)
    written = mobilenet.converted_weights().stat().st_mtime_ns
    monkeypatch.setattr(mobilenet, "mobilenet_file", lambda: pytest.fail("the package's file was read again"))
    mobilenet.load_mobilenet()
    assert mobilenet.converted_weights().stat().st_mtime_ns == written


def test_mobilenet_knows_a_cat() -> None:
    data = pytest.importorskip("skimage.data")
    from plaudit.rewards.encoders.mobilenet import load_mobilenet

    cat = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None] / 255
    network = load_mobilenet()
    probability, kind = network.logits(resized(cat, 224, 224)).softmax(-1).max(-1)
    assert kind.item() == 285 and probability.item() > 0.5, "Egyptian cat"


def test_names_of_drawings_that_no_emoji_set_has() -> None:
    from plaudit.rewards.encoders.load import load_encoder

    encoder, kinds = load_encoder("picture"), ["red circle", "blue circle", "red heart", "black square"]
    images = torch.stack([drawing(kind) for kind in kinds])
    similarity = encoder.embed_images(images) @ encoder.embed_texts(kinds).T
    assert (similarity.argmax(1) == torch.arange(4)).all(), similarity
    assert (similarity.argmax(0) == torch.arange(4)).all(), similarity


def test_patches_average_to_the_whole_and_gradients_flow() -> None:
    from plaudit.rewards.encoders.load import load_encoder

    encoder = load_encoder("picture")
    image = resized(drawing("red heart")[None], 64, 80).clamp(0.05, 0.95)
    features = encoder.features(image)  # type: ignore[attr-defined]
    assert features.shape == (1, 16, 1280)
    assert encoder.embed_patches(image).shape == (1, 16, 256)
    target = encoder.embed_texts(["red heart"])
    check_picture_gradient(lambda x: (encoder.embed_images(x) * target).sum(-1), image, step=1e-3)


# --- the build script --------------------------------------------------------------------------------------------


def pack(folder: Path, package: str, file: str, content: dict) -> None:
    data = json.dumps(content).encode()
    with tarfile.open(folder / f"{package}-1.0.0.tgz", "w:gz") as archive:
        member = tarfile.TarInfo(f"package/{file}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def test_packed_emoji_are_named_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    from plaudit.builds.picture import named_drawings, read_drawings, read_packed, rendered

    with pytest.raises(DataError, match="npm pack"):
        read_packed(tmp_path, "unicode-emoji-json", "data-by-emoji.json")
    red = '<circle cx="64" cy="64" r="50" fill="#f00"/>'
    icons = {"icons": {"red-circle": {"body": red}}, "aliases": {"round": {"parent": "red-circle"}}, "width": 128}
    pack(tmp_path, "iconify-json-noto", "icons.json", {**icons, "height": 128})
    pack(tmp_path, "iconify-json-fluent-emoji-flat", "icons.json", {**icons, "height": 128})
    pack(
        tmp_path,
        "unicode-emoji-json",
        "data-by-emoji.json",
        {
            "o": {"name": "red circle", "slug": "red_circle", "group": "Symbols"},
            "f": {"name": "flag", "slug": "round", "group": "Flags"},
        },
    )
    drawn = named_drawings(tmp_path, "iconify-json-noto", {"red-circle": "red circle", "round": "ring", "none": "none"})
    assert [name for name, _ in drawn] == ["red circle", "ring"]
    picture = rendered(drawn[0][1])
    assert picture[:, 56, 56].tolist() == [1.0, 0.0, 0.0] and picture[:, 2, 2].tolist() == [1.0, 1.0, 1.0]
    found = read_drawings(tmp_path)
    assert found.names == ["red circle"] and found.name.tolist() == [0, 0] and found.picture.shape == (2, 1280)


def test_frozen_normalisation_is_torchs_in_eval_mode() -> None:
    from plaudit.rewards.encoders.mobilenet import FrozenNorm

    own, torchs = FrozenNorm(3), torch.nn.BatchNorm2d(3).eval()
    for tensor in torchs.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)
    own.load_state_dict(torchs.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(own(x), torchs(x))
