"""Captions judged claim by claim: differences to a reference, and precision, coverage and language.

An answer that cannot be read is missing. `plaudit.rewards.judges.lab` has exact judges for the lab, functions of `output`,
`reference` and `facts`. The released prompts were not at hand: the templates are ours, in the words of the released parsers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plaudit.recipe.base import Positive
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.judges.ask import Question
from plaudit.rewards.judges.judged import Judged, LogMetric
from plaudit.rewards.judges.read import between, claims, find_json

# --- what the judge of differences says ------------------------------------------------------------------------------

JUDGMENTS = ("a", "b", "both_wrong", "both_supported")
WINNERS = ("a", "b", "tie")
HEADING = re.compile(r"\[(?:DIFFERENCE|OVERALL_WINNER|NO_DIFFERENCES)")
SEVERITY_WEIGHT: Mapping[int, float] = {1: 1.0, 2: 1.25, 3: 1.6}
SEVERITY_WORDS = (
    (3, ("hallucination", "mismatch", "incorrect", "wrong", "nonexistent", "fabricated", "overreach")),
    (2, ("omission", "missing", "truncation", "incomplete", "partial", "error")),
    (1, ("style", "aesthetic", "misinterpretation", "subjective")),
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One difference between the actor's caption (a) and the reference (b); an error of severity 0 is none."""

    aspect: str
    judgment: str
    severity_a: int
    severity_b: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    differences: tuple[Difference, ...]
    winner: str


def parse_comparison(text: str) -> Comparison | None:
    """The blocks `[DIFFERENCE n]` and the `[OVERALL_WINNER]`; None unless every block and the winner can be read.

    No block is a judge that sees no difference, but only where it names the winner: an empty answer is no verdict.
    """
    blocks = _blocks(text)
    if blocks is None or not blocks or blocks[-1].title != "OVERALL_WINNER":
        return None
    winner = blocks[-1].lines[0].strip().lower() if len(blocks[-1].lines) == 1 else ""
    differences = [_difference(block.lines) for block in blocks[:-1]]
    if winner not in WINNERS or None in differences:
        return None
    return Comparison(differences=tuple(one for one in differences if one is not None), winner=winner)


@dataclass(frozen=True, kw_only=True)
class _Block:
    title: str
    lines: tuple[str, ...]


def _blocks(text: str) -> list[_Block] | None:
    """Text by its headings; None where a heading is none of the schema's or stands within a line, or differences are not
    numbered one by one: a caption that is quoted may have headings of its own."""
    spoken = text.rpartition("</think>")[2]
    parts = re.split(r"^[^\S\n]*+\[([A-Z_]++(?:\s++\d++)?)\][ \t]*+$", spoken, flags=re.MULTILINE)
    blocks = [
        _Block(title=title, lines=tuple(line for line in body.splitlines() if line.strip()))
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    ]
    numbered = [block.title for block in blocks if block.title not in ("OVERALL_WINNER", "NO_DIFFERENCES")]
    expected = [f"DIFFERENCE {i}" for i in range(1, len(numbered) + 1)]
    alone = len(HEADING.findall(spoken)) == len(blocks)
    return blocks if alone and [" ".join(title.split()) for title in numbered] == expected else None


def _fields(lines: Sequence[str]) -> dict[str, str] | None:
    """A block's fields; those after `CAPTION_A_ERROR:` are the actor's, those after `CAPTION_B_ERROR:` the other's. None where a
    line is no field, or one comes twice."""
    fields: dict[str, str] = {}
    side = ""
    for line in lines:
        name, colon, value = line.strip().partition(":")
        if name in ("CAPTION_A_ERROR", "CAPTION_B_ERROR"):
            side = name[8].lower() + "."
        elif not colon or side + name in fields:
            return None
        else:
            fields[side + name] = value.strip()
    return fields


def _difference(lines: Sequence[str]) -> Difference | None:
    fields = _fields(lines) or {}
    judgment = re.sub(r"[ -]", "_", fields.get("JUDGMENT", "").lower())
    if judgment not in JUDGMENTS or not fields.get("a.ERROR_TYPE") or not fields.get("b.ERROR_TYPE"):
        return None
    return Difference(
        aspect=fields.get("ASPECT", ""),
        judgment=judgment,
        severity_a=severity(fields["a.ERROR_TYPE"], fields.get("a.SEVERITY_LEVEL", "")),
        severity_b=severity(fields["b.ERROR_TYPE"], fields.get("b.SEVERITY_LEVEL", "")),
    )


def severity(error_type: str, level: str = "") -> int:
    """The judge's level of an error, 1 to 3; where it gives none, by words in the error's name. 0 is no error."""
    named = error_type.strip().lower()
    if named in ("none", "na", "n/a"):
        return 0
    if level.strip() in ("1", "2", "3"):
        return int(level)
    return next((grade for grade, words in SEVERITY_WORDS if any(word in named for word in words)), 2)


# --- what it is worth ------------------------------------------------------------------------------------------------


def errors_of(severities: Sequence[int], weights: Mapping[int, float]) -> float:
    return sum(weights[grade] for grade in severities if grade)


def relative_reward(comparison: Comparison, weights: Mapping[int, float] = SEVERITY_WEIGHT) -> float:
    """0.5 - 0.5 d with d = (e_A - e_B) / (w_max D)."""
    count = len(comparison.differences)
    if count == 0:
        return 1.0
    errors_a = errors_of([one.severity_a for one in comparison.differences], weights)
    errors_b = errors_of([one.severity_b for one in comparison.differences], weights)
    return 0.5 - 0.5 * (errors_a - errors_b) / (max(weights.values()) * count)


def actor_reward(comparison: Comparison, weights: Mapping[int, float] = SEVERITY_WEIGHT) -> float:
    """(0.05 + 0.95 (1 - rho)^2) exp(-(e_A / w_max) / 4) (0.7 + 0.3 min(1, ln(1 + D) / ln 11)), rho = e_A / (w_max D)."""
    count = len(comparison.differences)
    if count == 0:
        return 1.0
    errors = errors_of([one.severity_a for one in comparison.differences], weights) / max(weights.values())
    density = errors / count
    found = min(1.0, math.log(1 + count) / math.log(11))
    return (0.05 + 0.95 * (1 - density) ** 2) * math.exp(-errors / 4) * (0.7 + 0.3 * found)


def judgment_reward(comparison: Comparison, weights: Mapping[int, float] = SEVERITY_WEIGHT) -> float:
    """0.5 + 0.5 q with q = (A's wins - B's wins) / D, +-0.1 for the overall winner. Severities do not matter."""
    count = len(comparison.differences)
    if count == 0:
        return 0.5
    verdicts = [one.judgment for one in comparison.differences]
    overall = {"a": 0.1, "b": -0.1, "tie": 0.0}[comparison.winner]
    q = (verdicts.count("a") - verdicts.count("b")) / count + overall
    return 0.5 + 0.5 * min(max(q, -1.0), 1.0)


FORMS: Mapping[str, Callable[[Comparison, Mapping[int, float]], float]] = {
    "actor": actor_reward,
    "relative": relative_reward,
    "judgment": judgment_reward,
}
HEDGE = re.compile(r"\b(?:and/or|or|possibly|appears to|might be|could be|likely)\b|\w/\w+", re.IGNORECASE)


def hedge_factor(text: str) -> float:
    """exp(-0.1 max(0, hedges - words / 90))."""
    return math.exp(-0.1 * max(0.0, len(HEDGE.findall(text)) - len(text.split()) / 90))


UNSEEN = "It is not shown: take the reference for what it shows."
PICTURE = (
    "A picture: {picture}\nA caption of it, by an author who may be wrong: {output}\nA reference caption: {reference}\n"
)


class _Judged(Judged):
    """What rewards with a caption judge share."""

    template: str

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        reference: Sequence[str | None],
        facts: Sequence[Mapping[str, Any]],
        inputs: Sequence[Mapping[str, Any]],
        log_metric: LogMetric | None = None,
    ) -> list[Score]:
        rows = zip(prompts, outputs, reference, facts, inputs, strict=True)
        return self.judged([self._asked(*row) for row in rows], log_metric)

    def _asked(
        self, prompt: str, output: str, reference: str | None, facts: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Question | Score:
        if not reference:
            return missing(Status.NOT_APPLICABLE, "the prompt has no `reference` caption")
        given = {"prompt": prompt, "output": output, "reference": reference, "facts": facts}
        return Question(template=self.template, fields={**given, "picture": inputs.get("picture", UNSEEN)})


class ClaimDifference(_Judged):
    """A caption's reward from the differences to a reference caption, each checked against the picture by a judge."""

    card = Card(
        summary="a caption's claims against a reference's, each checked by a judge",
        kind="text",
        low=0,
        high=1,
        systems=("S059",),
        cost_ms=0.2,
    )

    template = (
        PICTURE
        + """Call the first caption A and the reference B. For every aspect in which they differ, look at the picture and
write a block:
[DIFFERENCE 1]
ASPECT: what it is about
CAPTION_A_CLAIM: what A says of it
CAPTION_B_CLAIM: what B says of it
JUDGMENT: A, B, both_wrong or both_supported

CAPTION_A_ERROR:
ERROR_TYPE: NONE, or a name such as object_hallucination, count_mismatch, detail_omission or style_error
SEVERITY_LEVEL: 1, 2 or 3

CAPTION_B_ERROR:
ERROR_TYPE: as for A
SEVERITY_LEVEL: 1, 2 or 3

Number the blocks from 1, and quote no line that begins with a bracket. After all blocks write, and nothing after it:
[OVERALL_WINNER]
A, B or Tie"""
    )

    def __init__(
        self,
        judge: Any,
        form: Literal["actor", "relative", "judgment"] = "actor",
        weighted: bool = True,
        penalise_hedges: bool = False,
        samples: Positive = 1,
    ) -> None:
        super().__init__(judge, samples)
        self.form, self.penalise_hedges = form, penalise_hedges
        self.weights = SEVERITY_WEIGHT if weighted else dict.fromkeys(SEVERITY_WEIGHT, 1.0)

    def score(self, text: str, fields: Mapping[str, Any]) -> Score | None:
        comparison = parse_comparison(text)
        if comparison is None:
            return None
        hedging = hedge_factor(fields["output"]) if self.penalise_hedges else 1.0
        differences = comparison.differences
        parts = {
            "differences": float(len(differences)),
            "errors": float(sum(one.severity_a > 0 for one in differences)),
            "reference_errors": float(sum(one.severity_b > 0 for one in differences)),
        }
        return Score(value=FORMS[self.form](comparison, self.weights) * hedging, components=parts)


class ClaimVerification(_Judged):
    """1 - (false claims + missing facts) / differences; extra and contradicting claims are verified by the judge."""

    card = Card(
        summary="false claims and missing facts among a caption's differences to a reference",
        kind="text",
        low=0,
        high=1,
        systems=("S059",),
        cost_ms=0.2,
    )

    template = (
        PICTURE
        + """For every statement in which the caption differs from the reference, look at the picture and write a
block:
[DIFFERENCE 1]
TYPE: contradiction, extra_info (the caption alone says it) or missing_fact (the reference alone says it)
CONTENT: what is said
VERIFICATION: verified, false or ambiguous; for a missing_fact always missing

Number the blocks from 1, and quote no line that begins with a bracket. If there is no difference write only:
[NO_DIFFERENCES]"""
    )

    def score(self, text: str, fields: Mapping[str, Any]) -> Score | None:
        verdicts = parse_verifications(text)
        if verdicts is None:
            return None
        false, lost = verdicts.count("false"), verdicts.count("missing")
        value = 1 - (false + lost) / len(verdicts) if verdicts else 1.0
        return Score(value=value, components={"false": float(false), "missing": float(lost)})


VERIFICATIONS = {"contradiction": ("verified", "false", "ambiguous"), "missing_fact": ("missing",)}
VERIFICATIONS["extra_info"] = VERIFICATIONS["contradiction"]


def parse_verifications(text: str) -> list[str] | None:
    """Verified, false, ambiguous or missing for each difference; none are `[NO_DIFFERENCES]`, said in so many words."""
    blocks = _blocks(text)
    if not blocks:
        return None
    if [block.title for block in blocks] == ["NO_DIFFERENCES"]:
        return None if blocks[0].lines else []
    found = []
    for block in blocks:
        fields = _fields(block.lines) or {}
        kind, verdict = fields.get("TYPE", "").lower(), fields.get("VERIFICATION", "").lower()
        if verdict not in VERIFICATIONS.get(kind, ()):
            return None
        found.append(verdict)
    return found


# --- precision, coverage, language -----------------------------------------------------------------------------------

SHORTEST, LONGEST = 0.5, 2.0  # length over the reference's, in words, both allowed
LANGUAGE = ("clarity", "fluency", "coherence")


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The three rewards of a caption, each in 0..1."""

    precision: float
    coverage: float
    language: float

    @property
    def harmonic(self) -> float:
        parts = (self.precision, self.coverage, self.language)
        return 3 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0


def parse_balance(answer: str, output: str, reference: str) -> Balance | None:
    """`{"assertions": [{"true", "pointable"}], "units": [{"covered"}], "clarity", "fluency", "coherence"}` as rewards.

    An assertion counts when it is true and points at something in the picture. Language is 0 outside the length gate.
    """
    found = find_json(answer, "assertions") or {}
    asserted = claims(found.get("assertions"), {"true": _is_bool, "pointable": _is_bool})
    units = claims(found.get("units"), {"covered": _is_bool})
    marks: list[Any] = [found.get(name) for name in LANGUAGE]
    if asserted is None or not units or not all(between(mark, 0, 1) for mark in marks):
        return None
    good = [claim["true"] and claim["pointable"] for claim in asserted]
    ratio = len(output.split()) / len(reference.split())
    return Balance(
        precision=sum(good) / len(good) if good else 0.0,  # a caption that claims nothing
        coverage=sum(unit["covered"] for unit in units) / len(units),
        language=sum(marks) / len(marks) if SHORTEST <= ratio <= LONGEST else 0.0,
    )


def _is_bool(given: Any) -> bool:
    return isinstance(given, bool)


def _balance_card(summary: str) -> Card:
    return Card(summary=summary, kind="text", low=0, high=1, systems=("S086",), cost_ms=0.2)


class CaptionBalance(_Judged):
    """The harmonic mean of precision, coverage and language (b-CapScore). Train on the three apart, each normalised."""

    card = _balance_card("harmonic mean of a caption's precision, coverage and language")
    part = "harmonic"
    template = (
        PICTURE
        + """List every assertion of the caption: whether it is true of the picture, and whether it points at
something in it. List every fact of the reference: whether the caption covers it. Mark the caption's clarity, fluency and
coherence from 0 to 1. End with a line of JSON and nothing after it:
{"assertions": [{"text": "...", "true": true, "pointable": true}], "units": [{"text": "...", "covered": false}],
"clarity": 1.0, "fluency": 1.0, "coherence": 1.0}"""
    )

    def score(self, text: str, fields: Mapping[str, Any]) -> Score | None:
        balance = parse_balance(text, fields["output"], fields["reference"])
        if balance is None:
            return None
        parts = {"precision": balance.precision, "coverage": balance.coverage, "language": balance.language}
        return Score(value=getattr(balance, self.part), components=parts)


class CaptionPrecision(CaptionBalance):
    card = _balance_card("the fraction of a caption's assertions that are true and point at something")
    part = "precision"


class CaptionCoverage(CaptionBalance):
    card = _balance_card("the fraction of the reference's units that a caption covers")
    part = "coverage"


class CaptionLanguage(CaptionBalance):
    card = _balance_card("clarity, fluency and coherence of a caption; 0 outside half to twice the reference's length")
    part = "language"
