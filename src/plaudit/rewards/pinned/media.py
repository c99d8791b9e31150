"""The outputs that pinned scores are about, made from a few words, so that nothing large needs to be stored.

A spec is a text, or one of
`{scene: CAPTION, seed: N}`        a lab picture that shows the caption (32x32)
`{objects: [[COLOR, SHAPE, X, Y], ...]}`   a lab picture of objects at places, in pixels
`{shade: [R, G, B], size: N}`      one colour, N x N
`{ramp: [LOW, HIGH], size: N}`     grey, from LOW on the left to HIGH on the right
`{checks: CELL, size: N}`          black and white squares of CELL pixels
`{line: TEXT, width: W, height: H, font: SIZE}`   black words on white
`{tones: [HZ, ...], seconds: S, noise: LEVEL}`    a signal of sines at 16 kHz
`{speech: PITCH, seconds: S, noise: LEVEL, gain: G}`   voiced syllables with pauses between them, at 16 kHz
each with an optional `blur: PIXELS` or `noise: LEVEL` for pictures. `noise` is counter-based, the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.errors import DataError
from plaudit.lab.scenes.grammar import find_prompt
from plaudit.lab.scenes.render import rasterise, sample_scenes, slots_of

SAMPLE_RATE = 16_000


def make(spec: Any) -> Any:
    """The output a spec describes: a text, a picture `[3, H, W]` in 0..1, or a signal `[T]`."""
    if isinstance(spec, str):
        return spec
    makers = {"scene": _scene, "objects": _objects, "shade": _shade, "ramp": _ramp, "checks": _checks, "line": _line}
    makers |= {"tones": _tones, "speech": _speech}
    name = next((key for key in makers if isinstance(spec, Mapping) and key in spec), None)
    if name is None:
        raise DataError(f"pinned output {spec!r}: a text, or a mapping with one of {', '.join(makers)}")
    made = makers[name](spec)
    return made if name in ("tones", "speech") else _finished(made, spec)


def _scene(spec: Mapping[str, Any]) -> Tensor:
    prompt = find_prompt(spec["scene"])
    if prompt is None:
        raise DataError(f"pinned output: {spec['scene']!r} is not a caption of the `scenes` world")
    return rasterise(sample_scenes([prompt], np.random.default_rng(spec.get("seed", 0))))[0]


def _objects(spec: Mapping[str, Any]) -> Tensor:
    things = [
        dict(zip(("color", "shape", "x", "y"), thing, strict=True)) | {"radius": 4.0} for thing in spec["objects"]
    ]
    return rasterise(slots_of(things)[None])[0]


def _shade(spec: Mapping[str, Any]) -> Tensor:
    size = spec.get("size", 32)
    return torch.tensor(spec["shade"], dtype=torch.float32)[:, None, None].expand(3, size, size).clone()


def _ramp(spec: Mapping[str, Any]) -> Tensor:
    size = spec.get("size", 32)
    low, high = spec["ramp"]
    return torch.linspace(low, high, size).expand(3, size, size).clone()


def _checks(spec: Mapping[str, Any]) -> Tensor:
    cells = torch.arange(spec.get("size", 32)) // spec["checks"]
    return ((cells[:, None] + cells[None, :]) % 2).float().expand(3, -1, -1).clone()


def _line(spec: Mapping[str, Any]) -> Tensor:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    width, height = spec.get("width", 256), spec.get("height", 48)
    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.truetype(str(path), spec.get("font", 28))
    ImageDraw.Draw(image).text((8, height // 2), spec["line"], fill="black", font=font, anchor="lm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def _tones(spec: Mapping[str, Any]) -> Tensor:
    time = torch.arange(int(spec.get("seconds", 1.0) * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    signal = sum((torch.sin(2 * torch.pi * hz * time) for hz in spec["tones"]), torch.zeros_like(time))
    return (0.3 * signal + spec.get("noise", 0.0) * noise(time.shape)).float()


def _speech(spec: Mapping[str, Any]) -> Tensor:
    """Harmonics of a wavering pitch, louder around 500 and 1500 Hz, in four syllables a second; every fifth is a pause."""
    time = torch.arange(int(spec.get("seconds", 1.0) * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    phase = 2 * torch.pi * spec["speech"] * (time - 0.01 * torch.cos(2 * torch.pi * 3 * time))
    signal = torch.zeros_like(time)
    for harmonic in range(1, 25):
        hz = harmonic * spec["speech"]
        loudness = 1 / (1 + ((hz - 500) / 200) ** 2) + 0.5 / (1 + ((hz - 1500) / 300) ** 2)
        signal += loudness * torch.sin(harmonic * phase)
    syllable = (4 * time).long()
    signal *= torch.sin(torch.pi * 4 * time).square() * (syllable % 5 != 4)
    return (spec.get("gain", 1.0) * (0.2 * signal + spec.get("noise", 0.0) * noise(time.shape))).float()


def _finished(picture: Tensor, spec: Mapping[str, Any]) -> Tensor:
    if radius := spec.get("blur"):
        kernel = torch.ones(3, 1, 2 * radius + 1, 2 * radius + 1) / (2 * radius + 1) ** 2
        padded = torch.nn.functional.pad(picture[None], [radius] * 4, mode="replicate")
        picture = torch.nn.functional.conv2d(padded, kernel, groups=3)[0]
    if level := spec.get("noise"):
        picture = (picture + level * noise(picture.shape).float()).clamp(0, 1)
    return picture


def noise(shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Uniform in -1..1 by a hash of the position: the same numbers on every machine."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (position + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1).reshape(tuple(shape))
