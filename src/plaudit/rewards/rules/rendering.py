"""Drawings of untrusted programs: a batch is drawn in one sandbox, and comes back as pictures and facts.

Whatever a program does, it is the one that is called a failure, and the others are drawn: one that ends its sandbox costs
the rest a new start. What was drawn is kept for the process's other rewards, as the same program gives the same picture.
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from plaudit.dotted import import_dotted
from plaudit.errors import RewardError, SandboxError
from plaudit.rewards.base import Score, Status, missing
from plaudit.rewards.encoders.load import BUILT_IN as ENCODERS
from plaudit.rewards.encoders.load import load_encoder
from plaudit.rewards.rules.similarity import SSIM_WINDOW, PatchTransport, mean_squared_error, ssim_map
from plaudit.sandbox import Level, Limits, Outcome, RunStatus, run_python, safe_level
from plaudit.sandbox.launch import SYSTEM_CALLS
from plaudit.sandbox.seccomp import seccomp_filter

INSIDE = "plaudit.rewards.rules.inside"
MOST_TOGETHER = 64
MOST_KEPT = 512
Side = Annotated[int, Field(ge=SSIM_WINDOW, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=600)]
Megabytes = Annotated[int, Field(ge=64, le=1 << 16)]
Tolerance = Annotated[float, Field(ge=0, lt=1)]
LONGEST_PROGRAM = 200_000
MOST_FACTS = 1 << 20
WHY = {"timed_out": "out of time", "too_much": "an endless answer", "ended": "the program's process ended"}


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """How programs are drawn: `item_s` of CPU time and twice that on the clock, `memory_mb` of address space each, into
    pictures of `size` x `size`. `judged` refuses what drawings may not have, `facts` reads the figure."""

    worker: Literal["svg_worker", "figure_worker"]
    size: Side
    item_s: Seconds
    memory_mb: Megabytes
    judged: bool = True
    allow_text: bool = False
    facts: bool = True

    @property
    def most_bytes(self) -> int:
        return MOST_FACTS + 3 * self.size**2


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What became of a program: `pixels` (RGB bytes) and what it says of its figure, or the `problem` why there are none."""

    size: int = 0
    pixels: bytes = b""
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    timed_out: bool = False

    @property
    def picture(self) -> Tensor:
        """`[3, H, W]` in 0..1."""
        flat = torch.frombuffer(bytearray(self.pixels), dtype=torch.uint8)
        return flat.view(self.size, self.size, 3).permute(2, 0, 1).float() / 255


_kept: OrderedDict[tuple[Workshop, str], Drawn] = OrderedDict()
_lock = threading.Lock()


def forget() -> None:
    """Draw everything anew from now on."""
    with _lock:
        _kept.clear()


def draw(workshop: Workshop, programs: Sequence[str]) -> list[Drawn]:
    """One drawing per program, in order. SandboxError where nothing can be drawn on this machine."""
    with _lock:
        known = {text: _kept[workshop, text] for text in programs if (workshop, text) in _kept}
    new = [text for text in dict.fromkeys(programs) if text not in known]
    short = [text for text in new if len(text) <= LONGEST_PROGRAM]
    known |= {
        text: Drawn(problem=f"a program of {len(text)} characters") for text in new if len(text) > LONGEST_PROGRAM
    }
    for start in range(0, len(short), MOST_TOGETHER):
        part = short[start : start + MOST_TOGETHER]
        known |= dict(zip(part, draw_afresh(workshop, part), strict=True))
    with _lock:
        for text in short:
            if not known[text].timed_out:  # another time the machine may be faster
                _kept[workshop, text] = known[text]
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return [known[text] for text in programs]


def draw_afresh(workshop: Workshop, programs: Sequence[str]) -> list[Drawn]:
    """Without what is kept. A program during which the sandbox came to its end has failed."""
    drawn: list[Drawn] = []
    while len(drawn) < len(programs):
        outcome = _run(workshop, programs[len(drawn) :])
        ready, *answers = [line for line in outcome.stdout.splitlines(keepends=True) if line.endswith(b"\n")] or [b""]
        if not ready:
            raise SandboxError(f"{workshop.worker} does not start: {outcome.status}: {_tail(outcome.stderr)}")
        drawn += [_read(workshop, json.loads(line)) for line in answers]
        if outcome.status is not RunStatus.OK and len(drawn) < len(programs):
            late = outcome.status is RunStatus.TIMED_OUT
            drawn.append(Drawn(problem=f"it ended its sandbox: {outcome.status}", timed_out=late))
        elif not answers:
            raise SandboxError(f"{workshop.worker} drew nothing: {_tail(outcome.stderr)}")
    return drawn


def _tail(stream: bytes) -> str:
    return stream.decode(errors="replace")[-500:]


def _run(workshop: Workshop, programs: Sequence[str]) -> Outcome:
    guard = seccomp_filter(guard_signals=True) if safe_level() > Level.NONE else None
    settings = asdict(workshop) | {
        "num_items": len(programs),
        "most_bytes": workshop.most_bytes,
        "filter": guard and base64.b64encode(guard).decode(),
    }
    seconds = 20 + len(programs) * (2 * workshop.item_s + 0.5)
    return run_python(
        _source(workshop.worker),
        files={"prefork.py": _source("prefork").encode(), "linux.py": SYSTEM_CALLS},
        stdin=b"".join(map(_message, (settings, *programs))),
        limits=Limits(
            wall_s=seconds,
            cpu_s=seconds,
            memory_mb=workshop.memory_mb + 512,
            output_kb=64 + len(programs) * (1 + workshop.most_bytes * 4 // 3 // 1024),
        ),
    )


def _source(name: str) -> str:
    return (resources.files(INSIDE) / f"{name}.py").read_text(encoding="utf-8")


def _message(content: object) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(4, "little") + text


def _read(workshop: Workshop, answer: Mapping[str, str]) -> Drawn:
    """The server's line can be trusted, the content only to be bytes."""
    verdict, content = answer["verdict"], base64.b64decode(answer["content"])
    if verdict != "ok":
        note = content.decode(errors="replace")
        return Drawn(problem=": ".join(filter(None, (WHY.get(verdict), note))), timed_out=verdict == "timed_out")
    head, _, pixels = content.partition(b"\n")
    try:
        facts = json.loads(head)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or len(pixels) != 3 * workshop.size**2:
        return Drawn(problem="not an answer of ours")
    return Drawn(size=workshop.size, pixels=pixels, facts=facts)


def drawn_or_missing(workshop: Workshop, programs: Sequence[str]) -> list[Drawn] | Score:
    """A missing score for all where the sandbox itself fails; an error where this machine has none."""
    safe_level()
    try:
        return draw(workshop, programs)
    except SandboxError as error:
        return missing(Status.ERRORED, str(error))


# --- how alike two pictures are ---------------------------------------------------------------------------------------

Similarity = Callable[[Tensor, Tensor], Tensor]
SIMILARITIES = ("pixels", "ssim", "patch_transport", "layers")


def load_similarity(name: str, who: str) -> Similarity:
    """From pictures [B, 3, H, W] twice to [B] in 0..1, 1 where they are equal.

    pixels           1 - root mean square difference
    ssim             structural similarity, 0 where it is negative
    patch_transport  (1 + S063's transport similarity) / 2: pixels have cosines below 0, which would make a drawing worth
                     less than none
    layers           S049's mean cosine of a CNN's layers, with MobileNetV2 for the paper's ResNet-18
    an encoder       (1 + cosine) / 2, as in S018: lab, picture, clip:NAME
    package.module:function of your own
    """
    if name == "pixels":
        return lambda x, y: 1 - mean_squared_error(x, y).sqrt()
    if name == "ssim":
        return lambda x, y: ssim_map(x, y).mean(dim=(1, 2, 3)).clamp(0, 1).float()
    if name == "patch_transport":
        transport = PatchTransport()
        return lambda x, y: (1 + torch.tensor(transport([""] * len(x), x, list(y)))) / 2
    if name == "layers":
        from plaudit.rewards.encoders.mobilenet import load_mobilenet

        network = load_mobilenet()
        return lambda x, y: layer_cosines(network, x, y)
    if name.partition(":")[0] in ENCODERS:
        encoder = load_encoder(name)
        return lambda x, y: (1 + (encoder.embed_images(x) * encoder.embed_images(y)).sum(-1)) / 2
    if ":" not in name:
        raise RewardError(
            f"{who}: similarity {name!r}; allowed: {', '.join((*SIMILARITIES, *ENCODERS))} or a dotted path of your own"
        )
    similarity: Similarity = import_dotted(name, f"rewards.{who}.arguments.similarity")
    return similarity


STAGE_ENDS = (3, 6, 13, 17)  # of MobileNetV2's blocks: the last before each halving, as ResNet's four


def layer_cosines(network: Any, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """`[B]`: cosine per position of four layers' features, averaged over positions, then over layers; 0 where negative."""
    per_layer = []
    x, y = ((pictures - network.mean) / network.std for pictures in (x_BCHW, y_BCHW))
    for i, block in enumerate(network.features):
        x, y = block(x), block(y)
        if i in STAGE_ENDS:
            per_layer.append(torch.cosine_similarity(x, y, dim=1).mean(dim=(1, 2)))
    return torch.stack(per_layer).mean(0).clamp(0, 1)


def alike(similarity: Similarity, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Of pictures of one size; references of others are stretched to the drawing's."""
    if not pairs:
        return []
    drawn = torch.stack([one for one, _ in pairs])
    wanted = torch.stack([fitted(other, drawn.shape[-1]) for _, other in pairs])
    values = [float(value) for value in similarity(drawn, wanted)]
    if not all(math.isfinite(value) for value in values):
        raise RewardError(f"similarity gave {values}; it must give one finite number per pair")
    return [min(max(value, 0.0), 1.0) for value in values]


def fitted(picture_CHW: Tensor, size: int) -> Tensor:
    from plaudit.rewards.encoders.base import resized

    if not isinstance(picture_CHW, Tensor) or picture_CHW.ndim != 3 or picture_CHW.shape[0] != 3:
        raise RewardError("`reference` must be a picture: a Tensor [3, H, W] in 0..1")
    return resized(picture_CHW[None].float(), size, size)[0]
