"""A key frame chosen and boxes drawn in it, then carried through the video by a frozen tracker (S122).

Shape legend: N objects, T sampled frames, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.dotted import import_dotted
from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.rules.boxtext import legal, whole_json
from plaudit.rewards.rules.geometry import Box, set_iou

Masks = NDArray[np.bool_]
Propagator = Callable[[NDArray[np.float64], int, Sequence[Box]], Masks]

_ANSWER = re.compile(r"\s*<think>(?:(?!</think>).)*</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class KeyFrame:
    """An answer: the frame's absolute index in the video, and the boxes drawn in it."""

    frame: int
    boxes: tuple[Box, ...]


def read_key_frame(text: str) -> KeyFrame | None:
    """The answer, where the text keeps to the schema in every part; None otherwise."""
    answered = _ANSWER.fullmatch(text)
    data = whole_json(answered[1]) if answered else None
    if not isinstance(data, dict) or data.keys() != {"keyframe_timestamp", "bbox_2d_list"}:
        return None
    frame, boxes = data["keyframe_timestamp"], data["bbox_2d_list"]
    if type(frame) is not int or not isinstance(boxes, list) or not boxes:
        return None
    if not all(isinstance(box, list) and len(box) == 4 and all(map(legal, box)) for box in boxes):
        return None
    return KeyFrame(frame=frame, boxes=tuple(Box(*map(float, box)) for box in boxes))


def box_of(mask_HW: Masks) -> Box | None:
    """The box around a mask, to the far edge of its last pixels."""
    rows, columns = np.nonzero(mask_HW.any(1))[0], np.nonzero(mask_HW.any(0))[0]
    return Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else None


def mask_iou(a: Masks, b: Masks) -> float:
    """Overlap of two masks; 1 where both are empty, as in DAVIS."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def key_frame_ratio(masks_NTHW: Masks, at: int) -> float:
    """The targets' area in frame `at` over their largest in any sampled frame."""
    area_T = masks_NTHW.any(0).sum((1, 2))
    return float(area_T[at] / area_T.max())


def propagation_iou(carried_THW: Masks, masks_NTHW: Masks) -> float:
    """Mean overlap of the carried mask with the targets' over the sampled frames."""
    true_THW = masks_NTHW.any(0)
    return float(np.mean([mask_iou(a, b) for a, b in zip(carried_THW, true_THW, strict=True)]))


# --- a tracker without weights ---------------------------------------------------------------------------------------

STANDS_OUT = 0.1  # distance from the background, over the length of the colour range
REACH = 6  # pixels of motion between sampled frames


def carry_by_appearance(video_TCHW: NDArray[np.float64], at: int, boxes: Sequence[Box]) -> Masks:
    """What stands out from the background inside every box, moved frame by frame to where it looks most alike.

    For shapes that move without turning before a plain background, as in the lab; a real video needs a real tracker.
    """
    carried = np.zeros((len(video_TCHW), *video_TCHW.shape[2:]), dtype=bool)
    for box in boxes:
        start = _inside(video_TCHW[at], box)
        carried[at] |= start
        for step in (1, -1):
            mask, t = start, at
            while 0 <= t + step < len(video_TCHW) and mask.any():
                mask = _moved(video_TCHW[t], video_TCHW[t + step], mask)
                t += step
                carried[t] |= mask
    return carried


def _inside(frame_CHW: NDArray[np.float64], box: Box) -> Masks:
    height, width = frame_CHW.shape[1:]
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    within = (box.x1 <= x) & (x <= box.x2) & (box.y1 <= y) & (y <= box.y2)
    return within & _foreground(frame_CHW)


def _foreground(frame_CHW: NDArray[np.float64]) -> Masks:
    background = np.median(frame_CHW, axis=(1, 2))[:, None, None]
    return np.sqrt(((frame_CHW - background) ** 2).sum(0)) > STANDS_OUT * np.sqrt(len(frame_CHW))


def _moved(before_CHW: NDArray[np.float64], after_CHW: NDArray[np.float64], mask: Masks) -> Masks:
    """The mask at the offset of least squared difference, without the pixels that are background there."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    padded = np.empty((len(after_CHW), height + 2 * REACH, width + 2 * REACH))
    padded[:] = np.median(after_CHW, axis=(1, 2))[:, None, None]  # background outside, so that objects may leave
    padded[:, REACH:-REACH, REACH:-REACH] = after_CHW
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))[..., rows, columns]
    error = ((windows - before_CHW[:, None, None, rows, columns]) ** 2).sum((0, 3))
    motion = np.hypot(*np.meshgrid(*[np.arange(-REACH, REACH + 1)] * 2, indexing="ij"))
    best = np.lexsort((motion.ravel(), error.ravel()))[0]  # of equals, the least motion
    dy, dx = np.subtract(np.unravel_index(best, error.shape), REACH)
    rows, columns = rows + dy, columns + dx
    kept = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = np.zeros_like(mask)
    moved[rows[kept], columns[kept]] = True
    return moved & _foreground(after_CHW)


# --- the reward ------------------------------------------------------------------------------------------------------


class KeyFrameGrounding:
    """Schema, choice of key frame, boxes in it, and how well a frozen tracker carries them through the video.

    Columns: `masks` [N, T, H, W], the targets' in the sampled frames; `frame_ids` [T], the frames' absolute indices in
    the video, which the answer must use; `video` [T, C, H, W] or [T, H, W] in 0..1, which the tracker sees. Boxes are in
    the pixels of the masks. `propagator(video, t, boxes) -> masks [T, H, W]` is a function or its dotted path; the
    built-in one needs plain backgrounds. None leaves propagation out, and the video unread.
    Our choices where the paper is silent: the schema counts 0 or 1; what breaks it earns nothing; boxes without area
    count as predicted, overlap nothing and are not carried.
    """

    card = Card(
        summary="Answer's schema, key frame, boxes in it, and the mask a tracker makes of them.",
        kind="text",
        low=0,
        high=4,
        systems=("S122",),
        cost_ms=0.3,
    )

    def __init__(self, propagator: str | Propagator | None = carry_by_appearance) -> None:
        named = isinstance(propagator, str)
        self.propagator: Propagator | None = import_dotted(propagator, "arguments.propagator") if named else propagator
        if propagator is None:
            self.card = dataclasses.replace(KeyFrameGrounding.card, high=3)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        masks: Sequence[Any],
        frame_ids: Sequence[Any],
        video: Sequence[Any] | None = None,
    ) -> list[Score]:
        videos = [None] * len(outputs) if video is None else video
        return [self._score(*row) for row in zip(outputs, masks, frame_ids, videos, strict=True)]

    def _score(self, text: str, masks: Any, frame_ids: Any, video: Any) -> Score:
        if masks is None or frame_ids is None or (video is None and self.propagator is not None):
            return missing(Status.NOT_APPLICABLE, "needs the columns 'masks', 'frame_ids' and 'video'")
        masks_NTHW = np.asarray(masks).astype(bool)
        if masks_NTHW.ndim != 4 or masks_NTHW.shape[1] != len(frame_ids):
            raise RewardError(f"column 'masks' has shape {list(masks_NTHW.shape)}; give [N, {len(frame_ids)}, H, W]")
        if not masks_NTHW.any():
            return missing(Status.NOT_APPLICABLE, "no sampled frame shows a target")
        answer = read_key_frame(text)
        parts = {"format": float(answer is not None), "key_frame": 0.0, "boxes": 0.0}
        parts |= {} if self.propagator is None else {"propagation": 0.0}
        if answer is not None and answer.frame in frame_ids:
            at = list(frame_ids).index(answer.frame)
            true = [box for mask in masks_NTHW[:, at] if (box := box_of(mask)) is not None]
            parts["key_frame"] = key_frame_ratio(masks_NTHW, at)
            parts["boxes"] = set_iou(answer.boxes, true)
            parts |= self._propagation(video, at, answer.boxes, masks_NTHW)
        return Score(value=sum(parts.values()), components=parts)

    def _propagation(self, video: Any, at: int, boxes: Sequence[Box], masks_NTHW: Masks) -> dict[str, float]:
        valid = [box for box in boxes if box.valid]
        if self.propagator is None:
            return {}
        if not valid:
            return {"propagation": 0.0}
        frames = np.asarray(video, dtype=np.float64)
        frames = frames[:, None] if frames.ndim == 3 else frames
        return {"propagation": propagation_iou(self.propagator(frames, at, valid), masks_NTHW)}
