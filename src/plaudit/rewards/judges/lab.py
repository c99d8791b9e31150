"""Judges of the lab: they are told the truth, and answer in the words of the model judges that they stand for."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.data.content import media_hash
from plaudit.lab.edits.check import judge_edit
from plaudit.lab.scenes.check import UNEXPLAINED_LIMIT, Scene, SceneObject, detect
from plaudit.lab.scenes.grammar import COLORS, COUNT_WORDS, RELATION_WORDS, SHAPES, Pair
from plaudit.lab.scenes.render import SIZE

COUNTS = {word: count for count, word in COUNT_WORDS.items()} | {"an": 1, "one": 1}
NOUN = re.compile(rf"\b({'|'.join(COUNTS)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})s?\b")
RELATION = re.compile(rf"{NOUN.pattern} ({'|'.join(RELATION_WORDS.values())}) {NOUN.pattern}")
HEDGED = re.compile(rf"\b({'|'.join((*COLORS, *SHAPES))})s? or (?:a )?({'|'.join((*COLORS, *SHAPES))})s?\b")
FUNCTION_WORDS = frozenset("a an one two three four of and or , . the is are there left right above below".split())
MOVED = 4.0  # pixels

Claims = dict[str, Any]  # aspect -> what is claimed of it


def claims_of(caption: str) -> Claims:
    """Counts by pair, and the relations; a hedge is a claim of its own."""
    text = caption.lower()
    claims: Claims = Counter()
    for count, color, shape in NOUN.findall(text):
        claims[f"{color} {shape}"] = COUNTS[count]
    for match in RELATION.finditer(text):
        claims[f"{match[2]} {match[3]} to {match[6]} {match[7]}"] = match[4]
    return dict(claims) | {f"hedge {match[0]}": "hedged" for match in HEDGED.finditer(text)}


def truth_of(facts: Mapping[str, Any]) -> Claims:
    truth: Claims = {f"{item['color']} {item['shape']}": item["count"] for item in facts["objects"]}
    if facts.get("relation"):
        first, second = (f"{item['color']} {item['shape']}" for item in facts["objects"][:2])
        truth[f"{first} to {second}"] = RELATION_WORDS[facts["relation"]]
    return truth


def error_type(claim: Any, truth: Any) -> str:
    """NONE, or what is wrong with a claim; None where nothing is claimed, or there is nothing."""
    if claim == truth:
        return "NONE"
    if claim == "hedged":
        return "hedged_claim_error"
    if claim is None:
        return "detail_omission"
    return "object_hallucination" if truth is None else "claim_mismatch"


# --- differences -----------------------------------------------------------------------------------------------------


def compare_claims(output: str, reference: str, facts: Mapping[str, Any]) -> str:
    """The differences between two captions, each checked against the facts, in the blocks of the caption judge."""
    ours, theirs, truth = claims_of(output), claims_of(reference), truth_of(facts)
    blocks: list[str] = []
    wins = 0
    for aspect in sorted(ours.keys() | theirs.keys()):
        if ours.get(aspect) == theirs.get(aspect):
            continue
        wrong_a, wrong_b = (error_type(claims.get(aspect), truth.get(aspect)) for claims in (ours, theirs))
        right_a, right_b = wrong_a == "NONE", wrong_b == "NONE"
        wins += right_a - right_b
        judgment = {(True, False): "A", (False, True): "B", (False, False): "both_wrong"}[right_a, right_b]
        blocks.append(
            f"[DIFFERENCE {len(blocks) + 1}]\nASPECT: {aspect}\nCAPTION_A_CLAIM: {ours.get(aspect)}\n"
            f"CAPTION_B_CLAIM: {theirs.get(aspect)}\nJUDGMENT: {judgment}\n\n"
            f"CAPTION_A_ERROR:\nERROR_TYPE: {wrong_a}\nERROR_DETAIL: truly {truth.get(aspect)}\n\n"
            f"CAPTION_B_ERROR:\nERROR_TYPE: {wrong_b}\nERROR_DETAIL: truly {truth.get(aspect)}\n"
        )
    winner = "A" if wins > 0 else "B" if wins < 0 else "Tie"
    return "\n".join([*blocks, f"[OVERALL_WINNER]\n{winner}"])


def verify_claims(output: str, reference: str, facts: Mapping[str, Any]) -> str:
    """The differences of a caption to the reference as contradictions, extras and omissions, checked on the facts."""
    ours, theirs, truth = claims_of(output), claims_of(reference), truth_of(facts)
    blocks: list[str] = []
    for aspect in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(aspect), theirs.get(aspect)
        if mine == other:
            continue
        kind = "missing_fact" if mine is None else "extra_info" if other is None else "contradiction"
        verdict = "missing" if mine is None else "verified" if mine == truth.get(aspect) else "false"
        blocks.append(f"[DIFFERENCE {len(blocks) + 1}]\nTYPE: {kind}\nCONTENT: {aspect}\nVERIFICATION: {verdict}\n")
    return "\n".join(blocks) or "[NO_DIFFERENCES]"


def assess_caption(output: str, reference: str, facts: Mapping[str, Any]) -> str:
    """Assertions, covered units and marks of a caption, as JSON.

    A clause that names no object is a comment: true, but it points at nothing. Clarity falls with hedges, fluency with
    words outside the world's, coherence with objects named again.
    """
    truth, claims = truth_of(facts), claims_of(output)
    clauses = [clause for clause in re.split(r"[.;,]|\band\b", output.lower()) if clause.strip()]
    comments = [clause for clause in clauses if not NOUN.search(clause)]
    assertions = [
        {"true": error_type(claim, truth.get(aspect)) == "NONE", "pointable": True} for aspect, claim in claims.items()
    ]
    assertions += [{"true": True, "pointable": False}] * len(comments)
    words = re.findall(r"[a-z]+|,|\.", output.lower())
    known = [word for word in words if word in FUNCTION_WORDS or word.rstrip("s") in (*COLORS, *SHAPES)]
    named = [match[0] for match in NOUN.finditer(output.lower())]
    return json.dumps(
        {
            "assertions": assertions,
            "units": [{"covered": claims.get(aspect) == value} for aspect, value in truth.items()],
            "clarity": 1 / (1 + len(HEDGED.findall(output.lower()))),
            "fluency": len(known) / max(len(words), 1),
            "coherence": len(set(named)) / max(len(named), 1),
        }
    )


# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Pairing:
    pairs: list[tuple[SceneObject, SceneObject]]
    lost: list[SceneObject]
    extra: list[SceneObject]


def compare_scenes(target: Tensor, picture: Tensor) -> str:
    """The differences between two lab pictures, as the JSON of the visual judge.

    A lost or surplus object weighs 3, a wrong colour or shape 2, an object more than four pixels away 1.
    """
    wanted, seen = detect(target[None])[0], detect(picture[None])[0]
    pairing = _pair(wanted.objects, seen.objects)
    errors = [_difference("structure", 3, f"{_name(thing.pair)} is missing") for thing in pairing.lost]
    errors += [_difference("structure", 3, f"{_name(thing.pair)} too many") for thing in pairing.extra]
    errors += [_difference("structure", 3, f"a {blob.color} patch") for blob in seen.blobs]
    for first, second in pairing.pairs:
        if first.color != second.color:
            errors.append(_difference("style", 2, f"{_name(first.pair)} is {second.color}"))
        if first.shape != second.shape:
            errors.append(_difference("shape", 2, f"{_name(first.pair)} is a {second.shape}"))
        if _distance(first, second) > MOVED:
            errors.append(_difference("structure", 1, f"{_name(first.pair)} stands elsewhere"))
    return json.dumps({"errors": errors})


def _pair(wanted: Sequence[SceneObject], seen: Sequence[SceneObject]) -> _Pairing:
    """Objects of equal kind first, then of equal shape, then of equal colour, the nearest of each first."""
    lost, extra, pairs = list(wanted), list(seen), []
    for key in (lambda one: one.pair, lambda one: one.shape, lambda one: one.color):
        options = sorted(
            ((a, b) for a in lost for b in extra if key(a) == key(b)), key=lambda two: _distance(two[0], two[1])
        )
        for a, b in options:
            if a in lost and b in extra:
                pairs.append((a, b))
                lost.remove(a)
                extra.remove(b)
    return _Pairing(pairs=pairs, lost=lost, extra=extra)


def _distance(first: SceneObject, second: SceneObject) -> float:
    return float(((first.x - second.x) ** 2 + (first.y - second.y) ** 2) ** 0.5)


def _difference(category: str, severity: int, description: str) -> dict[str, Any]:
    return {"category": category, "severity": severity, "location": "", "description": description}


def _name(pair: Pair) -> str:
    return " ".join(pair)


# --- edits -----------------------------------------------------------------------------------------------------------

MARK = 25.0
LOOKS_AWAY = 0.5
BROKEN = 10 * UNEXPLAINED_LIMIT  # of a picture


def exact_edit(edited: Tensor, facts: Mapping[str, Any], aspect: str) -> str:
    """EditScore's judge that knows the truth: following and consistency, or naturalness and freedom from artifacts."""
    scene = _seen(edited.numpy().tobytes())
    if aspect == "quality":
        return _told(1 / (1 + len(scene.blobs)), 1 - min(scene.unexplained / BROKEN, 1.0))
    verdict = judge_edit(scene, facts)
    return _told(float(verdict.execution), verdict.consistency)


@functools.lru_cache(maxsize=256)
def _seen(pixels: bytes) -> Scene:
    """What a picture shows, of which a judge is asked several times over."""
    return detect(torch.frombuffer(bytearray(pixels), dtype=torch.float32).reshape(1, 3, SIZE, SIZE))[0]


def noisy_edit(edited: Tensor, facts: Mapping[str, Any], aspect: str, k: int) -> str:
    """The exact judge, which looks away half of the time: its marks are then anything between none and all."""
    digest = media_hash([edited, aspect, k])
    noise = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    if noise.random() >= LOOKS_AWAY:
        return exact_edit(edited, facts, aspect)
    return _told(*noise.random(2))


def biased_edit(edited: Tensor, facts: Mapping[str, Any], aspect: str) -> str:
    """It looks for what the instruction names as new, and for nothing that should be gone or should have stayed."""
    if aspect == "quality":
        return exact_edit(edited, facts, aspect)
    verdict = judge_edit(_seen(edited.numpy().tobytes()), {"kept": [], "gone": [], "new": facts["new"]})
    return _told(float(verdict.execution), 1.0)


def _told(*marks: float) -> str:
    return json.dumps(
        {"reasoning": "It was compared with the facts.", "score": [round(MARK * mark, 6) for mark in marks]}
    )
