"""Train the projections of the `picture` encoder on emoji: `plaudit lab build picture-encoder --data FOLDER`.

FOLDER holds what `npm pack @iconify-json/noto @iconify-json/fluent-emoji-flat unicode-emoji-json` leaves there: drawings
(Apache-2.0 and MIT) and names. Emoji of 150 names are held out of both sets. Both towers stay frozen, so their features
are computed once; the projections learn by InfoNCE on noisy features.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.builds.training import export_weights, write_measured
from plaudit.errors import DataError
from plaudit.optional import require
from plaudit.rewards.encoders.minilm import MiniLm
from plaudit.rewards.encoders.mobilenet import load_mobilenet
from plaudit.rewards.encoders.picture import SIZE, Projections

SETS = ("iconify-json-noto", "iconify-json-fluent-emoji-flat")
NAMES = "unicode-emoji-json"
LEFT_OUT = "Flags"
HELD_OUT = 150
STEPS, BATCH, RATE = 400, 512, 1e-3


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """Features of drawings and of the names they bear; `name[i]` is the row of drawing i's name."""

    picture: Tensor
    name: Tensor
    names: list[str]
    text: Tensor

    def of(self, names: Tensor) -> Drawings:
        keep = torch.isin(self.name, names)
        return Drawings(picture=self.picture[keep], name=self.name[keep], names=self.names, text=self.text)


def read_packed(folder: Path, package: str, file: str) -> dict:
    """A JSON file of a package as npm packed it, read in place."""
    found = sorted(folder.glob(f"{package}-[0-9]*.tgz"))
    if not found:
        raise DataError(
            f"{folder} holds no {package}-*.tgz; run there: npm pack @iconify-json/noto @iconify-json/fluent-emoji-flat "
            "unicode-emoji-json"
        )
    with tarfile.open(found[-1]) as archive:
        member = archive.extractfile(f"package/{file}")
        assert member is not None
        return json.load(member)


def named_drawings(folder: Path, package: str, slugs: dict[str, str]) -> list[tuple[str, str]]:
    """(name, SVG) of one set. Icons are found by the emoji's name in kebab case; flags and skin tones have none."""
    icons = read_packed(folder, package, "icons.json")
    side = icons.get("width", 16)
    drawn = []
    for slug, name in slugs.items():
        icon = icons["icons"].get(slug) or icons["icons"].get(icons.get("aliases", {}).get(slug, {}).get("parent", ""))
        if icon is not None:
            view = f"0 0 {icon.get('width', side)} {icon.get('height', side)}"
            drawn.append((name, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{icon["body"]}</svg>'))
    return drawn


def rendered(svg: str) -> Tensor:
    """`[3, SIZE, SIZE]` on white."""
    from PIL import Image

    resvg = require("resvg_py", extra="render", who="lab build picture-encoder")
    drawn = Image.open(io.BytesIO(bytes(resvg.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)))).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    return torch.from_numpy(np.asarray(page.convert("RGB").resize((SIZE, SIZE))).copy()).permute(2, 0, 1).float() / 255


@torch.no_grad()
def read_drawings(folder: Path) -> Drawings:
    table = read_packed(folder, NAMES, "data-by-emoji.json")
    slugs = {entry["slug"].replace("_", "-"): entry["name"] for entry in table.values() if entry["group"] != LEFT_OUT}
    drawn = [pair for package in SETS for pair in named_drawings(folder, package, slugs)]
    names = sorted({name for name, _ in drawn})
    vision, row = load_mobilenet(), {name: i for i, name in enumerate(names)}
    pictures = [
        vision(torch.stack([rendered(svg) for _, svg in drawn[at : at + 32]])).mean((2, 3))
        for at in range(0, len(drawn), 32)
    ]
    return Drawings(
        picture=torch.cat(pictures),
        name=torch.tensor([row[name] for name, _ in drawn]),
        names=names,
        text=MiniLm().embed_texts(names),
    )


def train(drawings: Drawings, steps: int, seed: int) -> Projections:
    """InfoNCE both ways; two drawings of one name in a batch are no negatives of each other."""
    torch.manual_seed(seed)
    projections, rng = Projections(), np.random.default_rng([seed, 81])
    optimizer = torch.optim.AdamW(projections.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    spread = drawings.picture.std(0, keepdim=True)
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(drawings.name), BATCH, replace=False))
        name = drawings.name[rows]
        noise = torch.from_numpy(rng.standard_normal((BATCH, spread.shape[1]), dtype=np.float32))
        hidden = torch.from_numpy(rng.random((BATCH, spread.shape[1])) < 0.2)
        pictures = (drawings.picture[rows] + 0.3 * spread * noise).masked_fill(hidden, 0) / 0.8
        logits = projections.log_scale.exp().clamp(max=100) * similarity(projections, pictures, drawings.text[name])
        twins = (name[:, None] == name[None]) & ~torch.eye(BATCH, dtype=torch.bool)
        logits, own = logits.masked_fill(twins, -torch.inf), torch.arange(BATCH)
        loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(projections.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return projections.eval()


def similarity(projections: Projections, pictures: Tensor, texts: Tensor) -> Tensor:
    return F.normalize(projections.picture(pictures), dim=-1) @ F.normalize(projections.text(texts), dim=-1).T


@torch.no_grad()
def recall(projections: Projections, drawings: Drawings, names: Sequence[int], at: Sequence[int]) -> dict[str, float]:
    """How often a drawing's own name is among the nearest `at` of `names`."""
    among = torch.tensor(names)
    ranked = similarity(projections, drawings.picture, drawings.text[among]).argsort(1, descending=True)
    found = among[ranked] == drawings.name[:, None]
    return {f"r_at_{k}": found[:, :k].any(1).double().mean().item() for k in at}


def build_picture_encoder(
    out: Path, data: Path, *, steps: int | None = None, seed: int = 0, install: bool = False
) -> Path:
    """Train on all but the held-out names, measure on those, and write the projections."""
    drawings = read_drawings(data)
    order = torch.from_numpy(np.random.default_rng([seed, 82]).permutation(len(drawings.names)))
    held_out, known = order[:HELD_OUT], order[HELD_OUT:]
    projections = train(drawings.of(known), steps or STEPS, seed)
    measured: dict[str, object] = {"drawings": len(drawings.name), "names": len(drawings.names), "held_out": HELD_OUT}
    measured |= recall(projections, drawings.of(held_out), held_out.tolist(), (1, 5))
    write_measured(out, "picture-encoder", measured)
    return export_weights(out, "picture-encoder", projections.state_dict(), install)
