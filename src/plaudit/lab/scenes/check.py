"""The exact checker of the `scenes` world: what a picture shows, read from its pixels, against what its caption states.

Reading (`detect`) takes a pixel as background + opacity (palette colour - background). Pixels at least half opaque
form connected components per colour. A component is an object when one of the renderer's three shapes, drawn at its
centroid with its area, overlaps its opacities well; otherwise it is a blob. Whatever else stands out from the
background and does not border a component is unexplained.

Judging (`check`): a picture is correct when its objects are exactly those of the facts, it has no blob, at most
`UNEXPLAINED_LIMIT` of it is unexplained, and the relation holds: the first centroid lies at least `RELATION_OFFSET`
pixels from the second in the direction named, however far apart they are in the other direction.

The limits accept colours off by 0.1 per channel (objects or background), pixel noise of 0.03, outlines blurred over
two pixels and shifts by parts of a pixel. They refuse what the world never draws: ghosts, colours between two of the
palette, merged or largely hidden objects, objects cut off by the border or far from the world's sizes.

Shape legend: B pictures, H = W = 32 pixels, F foreground pixels, C colours, M components, S shapes, U = V crop pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.lab.scenes.grammar import COLORS, RELATION_WORDS, RELATIONS, SHAPES, Pair
from plaudit.lab.scenes.render import BACKGROUND, PALETTE, SIZE, SQUARE_HALF_SIDE, TRIANGLE_CIRCUMRADIUS, coverage

RELATION_OFFSET = 3.0  # pixels; true scenes have at least 6
UNEXPLAINED_LIMIT = 0.01  # of the picture: ten pixels

# Distances are Euclidean in RGB: a shift of 0.1 in every channel has length 0.17.
TINT = 0.1  # per channel: how far the background may be from the world's
VISIBLE = 0.20  # from the background; less is noise
PIXEL_RESIDUAL = 0.25  # from the line between background and palette colour
COLOR_DISTANCE = 0.23  # from the palette colour to the mean pixel inside an object; orange and half-opaque are further
FOREGROUND = 0.5  # opacity
HIGHEST_OPACITY = 1.25  # of a pixel brighter than the palette: green + 0.1 has 1.2
SPECK = 6  # pixels; smaller components are neither object nor blob, only unexplained
MINIMAL_OVERLAP = 0.82  # of opacities; true objects have 0.93, shifted, off colour and noisy ones still 0.84
STRETCH_LIMIT = 0.12  # true objects stay under 0.10; two of one colour exceed it from 2.5 pixels apart
RADIUS_LIMITS = (2.75, 6.0)  # pixels; the world draws 3.5 to 5
CROP = 18  # pixels; holds the largest object
UNIT_AREA = (math.pi, (2 * SQUARE_HALF_SIDE) ** 2, 0.75 * math.sqrt(3) * TRIANGLE_CIRCUMRADIUS**2)  # SHAPES of radius 1


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A recognised object: position in pixels with y downwards, area in pixels, overlap with its shape in [0, 1]."""

    color: str
    shape: str
    x: float
    y: float
    area: float
    iou: float

    @property
    def pair(self) -> Pair:
        return self.color, self.shape


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A patch of about one colour that is no object."""

    color: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows; `unexplained` is the fraction of its pixels that stand out but are in neither list."""

    objects: tuple[SceneObject, ...]
    blobs: tuple[Blob, ...]
    unexplained: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the facts hold, how much of them, and why not.

    `graded` is the mean over parts, divided by 1 + the number of extra objects and blobs; when too much of the picture
    is unexplained, also multiplied by the explained fraction. The parts are: every required object (1, or 1/2 for an
    object that shares only its colour or only its shape, colour first); that nothing is missing or extra; the relation.
    It is 1 exactly when `correct`.
    """

    correct: bool
    graded: float
    reasons: tuple[str, ...]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, kw_only=True)
class _Components:
    """Connected patches: picture, palette index and centroid `[M]`, and whose each pixel is (-1: nobody's)."""

    image: Tensor
    color: Tensor
    x: Tensor
    y: Tensor
    owner_BHW: Tensor


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The best shape of every component `[M]`; area and centroid are sums over opacities, finer than pixels."""

    recognised: Tensor
    shape: Tensor
    x: Tensor
    y: Tensor
    area: Tensor
    overlap: Tensor


def check(images: Tensor | np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
    """Whether picture i shows what prompt i states; images `[B, 3, 32, 32]` in [0, 1]."""
    scenes = detect(images)
    if len(scenes) != len(prompts):
        raise DataError(f"scenes: {len(scenes)} images for {len(prompts)} prompts; pass one prompt per image")
    return [judge(scene, prompt) for scene, prompt in zip(scenes, prompts, strict=True)]


def detect(images: Tensor | np.ndarray) -> list[Scene]:
    """Objects, blobs and unexplained pixels of every picture; images `[B, 3, 32, 32]` in [0, 1]."""
    pixels_B3HW = _validated(images)
    offset_B3HW = pixels_B3HW - _background(pixels_B3HW)[:, :, None, None]
    visible_BHW = offset_B3HW.square().sum(1) > VISIBLE**2
    components = _connect(*_palette_pixels(offset_B3HW, visible_BHW), batch=len(offset_B3HW))
    unexplained_BHW = visible_BHW & ~_dilate(components.owner_BHW >= 0)
    return _scenes(components, _fit_shapes(offset_B3HW, components), unexplained_BHW.float().mean((1, 2)))


def judge(scene: Scene, prompt: Prompt) -> Verdict:
    """Whether a detected scene satisfies a prompt's facts; see `Verdict` for the grading."""
    needed, relation = _facts(prompt)
    missing, spare = list(needed.elements()), list(scene.objects)
    matched = _pair_off(missing, spare, lambda pair: pair)
    halves = _pair_off(missing, spare, lambda pair: pair[0]) + _pair_off(missing, spare, lambda pair: pair[1])
    num_extra = len(spare) + len(scene.blobs)
    complete = not missing and num_extra == 0
    related = relation is not None and relation_holds(scene.objects, list(needed), relation)
    messy = scene.unexplained > UNEXPLAINED_LIMIT
    satisfied = matched + halves / 2 + complete + related
    num_parts = needed.total() + 1 + (relation is not None)
    reasons = _count_reasons(scene, needed) + _relation_reasons(scene, list(needed), relation)
    if messy:
        reasons.append(f"{100 * scene.unexplained:.0f} % of the picture is unexplained")
    return Verdict(
        correct=satisfied == num_parts and not messy,
        graded=satisfied / num_parts / (1 + num_extra) * (1 - scene.unexplained if messy else 1),
        reasons=tuple(reasons),
        objects=scene.objects,
    )


def _validated(images: Tensor | np.ndarray) -> Tensor:
    pixels = torch.as_tensor(images).detach().cpu()
    if pixels.ndim != 4 or pixels.shape[1:] != (3, SIZE, SIZE):
        raise DataError(f"scenes: images have shape {list(pixels.shape)}; pass [B, 3, {SIZE}, {SIZE}]")
    if not pixels.is_floating_point():
        raise DataError(f"scenes: images are {pixels.dtype}; pass floats in [0, 1], dividing bytes by 255")
    outside = ~((pixels > -0.001) & (pixels < 1.001)).flatten(1).all(1)  # also true of NaN
    if outside.any():
        row = int(outside.nonzero()[0])
        low, high = pixels[row].min().item(), pixels[row].max().item()
        raise DataError(
            f"scenes: image {row} has values from {low:.3g} to {high:.3g}; allowed: 0 to 1; clamp or rescale"
        )
    return pixels.float()


def _background(pixels_B3HW: Tensor) -> Tensor:
    """The background `[B, 3]` a picture really has: its median, within `TINT` of the world's."""
    ground = torch.tensor(BACKGROUND)
    return pixels_B3HW.flatten(2).median(dim=2).values.clamp(ground - TINT, ground + TINT)


def _palette() -> Tensor:
    """Palette colours `[C, 3]` as offsets from the background."""
    return torch.tensor(list(PALETTE.values())) - torch.tensor(BACKGROUND)


def _palette_pixels(offset_B3HW: Tensor, visible_BHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Positions (picture, row, column) `[F, 3]` and palette indices `[F]` of the foreground pixels."""
    where = visible_BHW.nonzero()
    offset = offset_B3HW[where[:, 0], :, where[:, 1], where[:, 2]]
    palette_C3 = _palette()
    along = offset @ palette_C3.T
    length = palette_C3.square().sum(1)
    opacity = (along / length).clamp(0, HIGHEST_OPACITY)
    residual = offset.square().sum(1, keepdim=True) - 2 * opacity * along + opacity.square() * length
    smallest, color = residual.min(1)
    solid = opacity.gather(1, color[:, None])[:, 0] >= FOREGROUND
    kept = solid & (smallest < PIXEL_RESIDUAL**2)
    return where[kept].numpy(), color[kept].numpy()


def _connect(where_F3: np.ndarray, color_F: np.ndarray, *, batch: int) -> _Components:
    """Components of equal colour, specks left out; one labelling pass over the (picture, colour) planes in use."""
    from scipy import ndimage  # 0.3 s, which importing a world must not cost

    image, row, column = where_F3.T
    planes, plane = np.unique(image * len(COLORS) + color_F, return_inverse=True)
    masks = np.zeros((len(planes), SIZE, SIZE), dtype=bool)
    masks[plane, row, column] = True
    within_picture = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3])
    labels, count = ndimage.label(masks, within_picture)
    label = labels[plane, row, column] - 1
    size = np.bincount(label, minlength=count)
    kept = size >= SPECK
    number = np.where(kept, np.cumsum(kept) - 1, -1)[label]
    owner = np.full((batch, SIZE, SIZE), -1)
    owner[image, row, column] = number
    first = np.zeros(count, dtype=np.int64)
    first[label] = planes[plane]
    y, x = (np.bincount(label, weights=axis + 0.5, minlength=count)[kept] / size[kept] for axis in (row, column))
    return _Components(
        image=torch.from_numpy(first[kept] // len(COLORS)),
        color=torch.from_numpy(first[kept] % len(COLORS)),
        x=torch.from_numpy(x).float(),
        y=torch.from_numpy(y).float(),
        owner_BHW=torch.from_numpy(owner),
    )


def _fit_shapes(offset_B3HW: Tensor, components: _Components) -> _Fit:
    """Compare the opacities around every component with the three shapes drawn in its place."""
    top, left = ((centre.floor().long() - CROP // 2) for centre in (components.y, components.x))
    window = torch.arange(CROP)
    rows, columns = (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None, :]
    opacity_MUV, distance = _opacities(offset_B3HW, components, rows, columns)
    area = opacity_MUV.sum((1, 2))
    x = (opacity_MUV * (columns + 0.5)).sum((1, 2)) / area
    y = (opacity_MUV * (rows + 0.5)).sum((1, 2)) / area
    radius_MS = (area[:, None] / torch.tensor(UNIT_AREA)).sqrt()
    dx, dy = columns + 0.5 - x[:, None, None], rows + 0.5 - y[:, None, None]
    stretch = _stretch(opacity_MUV / area[:, None, None], dx, dy)
    overlap, shape = _overlaps(opacity_MUV, dx, dy, radius_MS).max(1)
    radius = radius_MS.gather(1, shape[:, None])[:, 0]
    sized = (radius >= RADIUS_LIMITS[0]) & (radius <= RADIUS_LIMITS[1])
    shaped = (overlap >= MINIMAL_OVERLAP) & (stretch <= STRETCH_LIMIT)
    recognised = sized & shaped & (distance <= COLOR_DISTANCE)
    return _Fit(recognised=recognised, shape=shape, x=x, y=y, area=area, overlap=overlap)


def _opacities(offset_B3HW: Tensor, components: _Components, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Opacities `[M, U, V]` relative to the pixels inside, and how far these are from the palette colour `[M]`.

    Pixels bordering a component contribute unless they belong to another; elsewhere its opacity is zero. A component
    with nothing inside (no pixel whose eight neighbours are its own) has NaN for both, which no limit accepts.
    """
    margin = (CROP,) * 4
    image = components.image[:, None, None]
    owner = F.pad(components.owner_BHW, margin, value=-1)[image, rows + CROP, columns + CROP]
    offset_MUV3 = F.pad(offset_B3HW, margin).permute(0, 2, 3, 1)[image, rows + CROP, columns + CROP]
    color_M3 = _palette()[components.color]
    own = owner == torch.arange(len(owner))[:, None, None]
    outline = _dilate(own) & (own | (owner < 0))
    inside = own & ~_dilate(~own)
    seen_M3 = (inside[..., None] * offset_MUV3).sum((1, 2)) / inside.sum((1, 2))[:, None]
    direction_M3 = color_M3 / color_M3.square().sum(1, keepdim=True)
    body = (seen_M3 * direction_M3).sum(1)
    opacity = torch.einsum("muvc,mc->muv", offset_MUV3, direction_M3) / body[:, None, None]
    return outline * opacity.clamp(0, 1), (seen_M3 - color_M3).norm(dim=1)


def _stretch(weight_MUV: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Anisotropy `[M]` of the second moments, in [0, 1]: zero for all three shapes, however blurred."""
    xx, yy, xy = ((weight_MUV * moment).sum((1, 2)) for moment in (dx * dx, dy * dy, dx * dy))
    return torch.hypot(xx - yy, 2 * xy) / (xx + yy)


def _overlaps(opacity_MUV: Tensor, dx: Tensor, dy: Tensor, radius_MS: Tensor) -> Tensor:
    """Soft intersection over union `[M, S]` with each shape, drawn sharp or slightly blurred, whichever fits better."""
    dx, dy = dx.expand_as(opacity_MUV), dy.expand_as(opacity_MUV)
    sharp = torch.stack([coverage(dx, dy, radius_MS[:, k, None, None])[..., k] for k in range(len(SHAPES))], dim=1)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = F.conv2d(sharp.flatten(0, 1)[:, None], torch.outer(kernel, kernel)[None, None], padding=1)
    seen = opacity_MUV[:, None]
    scores = []
    for template in (sharp, blurred.view_as(sharp)):
        scores.append(torch.minimum(seen, template).sum((2, 3)) / torch.maximum(seen, template).sum((2, 3)))
    return torch.maximum(*scores)


def _dilate(mask: Tensor) -> Tensor:
    """Grow masks `[N, H, W]` by one pixel in all eight directions."""
    return F.max_pool2d(mask.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0


def _scenes(components: _Components, fit: _Fit, unexplained: Tensor) -> list[Scene]:
    objects: list[list[SceneObject]] = [[] for _ in unexplained]
    blobs: list[list[Blob]] = [[] for _ in unexplained]
    columns = (components.image, components.color, components.x, components.y, fit.recognised)
    fitted = (fit.shape, fit.x, fit.y, fit.area, fit.overlap)
    for image, color, x, y, recognised, shape, *numbers in zip(*(c.tolist() for c in (*columns, *fitted)), strict=True):
        if recognised:
            fine_x, fine_y, area, iou = numbers
            thing = SceneObject(color=COLORS[color], shape=SHAPES[shape], x=fine_x, y=fine_y, area=area, iou=iou)
            objects[image].append(thing)
        else:
            blobs[image].append(Blob(color=COLORS[color], x=x, y=y))
    return [
        Scene(objects=tuple(things), blobs=tuple(patches), unexplained=fraction)
        for things, patches, fraction in zip(objects, blobs, unexplained.tolist(), strict=True)
    ]


def _facts(prompt: Prompt) -> tuple[Counter[Pair], str | None]:
    """How many of each pair a prompt requires, in the caption's order, and the relation of the first to the second."""
    if "objects" not in prompt.facts:
        raise DataError(
            f"scenes: prompt {prompt.id!r} has the facts {sorted(prompt.facts)}; required: 'objects' and 'relation'; "
            "take prompts from plaudit.lab.scenes.grammar"
        )
    needed: Counter[Pair] = Counter()
    for item in prompt.facts["objects"]:
        if item["color"] not in COLORS or item["shape"] not in SHAPES:
            raise DataError(
                f"scenes: prompt {prompt.id!r} requires a {item['color']} {item['shape']}; "
                f"allowed: {', '.join(COLORS)}; {', '.join(SHAPES)}"
            )
        needed[item["color"], item["shape"]] += item["count"]
    relation = prompt.facts.get("relation")
    if relation is not None and (relation not in RELATIONS or len(needed) < 2):
        raise DataError(
            f"scenes: prompt {prompt.id!r} has relation {relation!r} among {len(needed)} kinds of object; "
            f"allowed: none, or one of {', '.join(RELATIONS)} between two kinds"
        )
    return needed, relation


def _pair_off(missing: list[Pair], spare: list[SceneObject], key: Callable[[Pair], Hashable]) -> int:
    """Take from both lists, one to one, what agrees in `key`; returns how many were taken."""
    num_before = len(missing)
    for pair in tuple(missing):
        fitting = next((thing for thing in spare if key(thing.pair) == key(pair)), None)
        if fitting is not None:
            missing.remove(pair)
            spare.remove(fitting)
    return num_before - len(missing)


def relation_holds(objects: Sequence[SceneObject], pairs: Sequence[Pair], relation: str) -> bool:
    """Whether some first object stands in the relation to some second one."""
    firsts, seconds = ([thing for thing in objects if thing.pair == pair] for pair in pairs[:2])
    sign = -1 if relation in ("left", "above") else 1
    axis = "x" if relation in ("left", "right") else "y"
    return any(
        sign * (getattr(first, axis) - getattr(second, axis)) >= RELATION_OFFSET
        for first in firsts
        for second in seconds
    )


def _count_reasons(scene: Scene, needed: Counter[Pair]) -> list[str]:
    found = Counter(thing.pair for thing in scene.objects)
    wrong = [f"expected {_noun(n, pair)}, found {found[pair]}" for pair, n in needed.items() if found[pair] != n]
    extra = [f"extra {_noun(n, pair) if n > 1 else ' '.join(pair)}" for pair, n in found.items() if pair not in needed]
    return wrong + extra + [f"unrecognised {b.color} blob at ({b.x:.0f}, {b.y:.0f})" for b in scene.blobs]


def _relation_reasons(scene: Scene, pairs: Sequence[Pair], relation: str | None) -> list[str]:
    """A complaint only when both objects are there to be compared; otherwise their absence is the reason."""
    found = {thing.pair for thing in scene.objects}
    if relation is None or not found.issuperset(pairs) or relation_holds(scene.objects, pairs, relation):
        return []
    first, second = (" ".join(pair) for pair in pairs[:2])
    return [f"{first} is not {RELATION_WORDS[relation]} {second}"]


def _noun(count: int, pair: Pair) -> str:
    return f"{count} {pair[0]} {pair[1]}{'s' if count > 1 else ''}"
