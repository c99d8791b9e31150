"""SVG in texts: finding it, the gate, attacks, the formula."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from plaudit.errors import SandboxError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.encoders.base import Encoder
from plaudit.rewards.rules import rendering
from plaudit.rewards.rules.drawings import SvgRenders, SvgSimilarity, extract_svg
from plaudit.rewards.rules.rendering import Workshop, alike, draw, draw_afresh, load_similarity
from plaudit.sandbox import Outcome, RunStatus

OPEN = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 8 8">'
SQUARE = f'{OPEN}<rect width="4" height="8"/></svg>'
SHOP = Workshop(worker="svg_worker", size=32, item_s=0.3, memory_mb=512, facts=False)


class Shades(Encoder):
    """Sees how bright a picture is, and how long a text."""

    max_tokens = 9

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor([[1.0, len(text) / 10] for text in texts]), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(1, 2, 3))
        return torch.nn.functional.normalize(torch.stack([means, means - 1], dim=-1), dim=-1)


def svg(inside: str) -> str:
    return f"{OPEN}{inside}</svg>"


def gates(outputs: list[str], **options: object) -> list[Score]:
    return SvgRenders(size=32, item_s=1, **options)([""] * len(outputs), outputs)  # type: ignore[arg-type]


# --- the drawing in the text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,expected",
    [
        ("a <svg x='1'>b</svg> c <svg>d</svg>", "<svg x='1'>b</svg>"),
        ("<svg><svg>in</svg></svg> <svg/>", "<svg><svg>in</svg></svg>"),
        ("<svg><svg/></svg> </svg>", "<svg><svg/></svg>"),
        ("</svg><svg/>", "<svg/>"),
        ("```svg\n<svg>1</svg>\n```\n```xml\n<svg>2</svg>\n```", "<svg>2</svg>"),
        ("```svg\n<svg>1</svg>\n```\n```python\nx\n```", "<svg>1</svg>"),
        ("<svg>0</svg>\n```\nno drawing\n```", "<svg>0</svg>"),
        ("<svg>", None),
        ("<svgs></svgs>", None),
        ("", None),
    ],
)
def test_the_last_fenced_or_the_first_drawing_is_taken(text: str, expected: str | None) -> None:
    assert extract_svg(text) == expected


@pytest.mark.parametrize("piece", ("<svg", "<svg>", "a "))
def test_finding_a_drawing_takes_linear_time(piece: str) -> None:
    """Processor time, the least of several: eight times as much text may cost eight times as much, not sixty-four."""

    def cost(count: int) -> float:
        text, spent = "<svg " + piece * count, []
        for _ in range(5):
            started = time.process_time()
            assert extract_svg(text) is None
            spent.append(time.process_time() - started)
        return min(spent)

    assert cost(200_000) < 24 * max(cost(25_000), 1e-3)


def test_the_format_is_thought_then_answer() -> None:
    good = f"<think>x</think><answer>{SQUARE}</answer>"
    texts = [good, SQUARE, f"<think>{SQUARE}</think><answer></answer>", good + "!", good.replace("think", "thought")]
    assert [score.value for score in gates(texts, tags=("think", "answer"))] == [1, 0, 0, 0, 0]


# --- what is banned ---------------------------------------------------------------------------------------------------

BANNED = {
    "<text>a cat</text>": "text",
    "<g><text><tspan>a</tspan></text></g>": "text",
    "<defs><textPath/></defs>": "text",
    '<s:text xmlns:s="http://www.w3.org/2000/svg">a</s:text>': "text",
    "<TEXT>a</TEXT>": "text",
    '<image href="a.png"/>': "embedded picture, external reference",
    '<image href="data:image/png;base64,AA=="/>': "embedded picture",
    '<feImage href="#a"/>': "embedded picture",
    "<script>1</script>": "script",
    '<rect onload="a()"/>': "script",
    "<foreignObject/>": "foreign content",
    '<use xlink:href="other.svg#a"/>': "external reference",
    '<rect fill="url(http://a/b)"/>': "external reference",
    "<rect style=\"fill: URL( 'file:///a#b')\"/>": "external reference",
    "<style>@import 'a.css';</style>": "external reference",
    "<style>rect { fill: url(a.svg#b) }</style>": "external reference",
}
ALLOWED = [
    '<linearGradient id="g"/><rect fill="url(#g)" width="4" height="4"/>',
    '<rect id="a" width="1" height="1"/><use href="#a" x="3"/>',
    "<style>rect { fill: blue }</style><!-- <text> --><title>words</title>",
    "<desc>&lt;text&gt; text</desc>",
]


def test_what_is_banned_and_what_is_not() -> None:
    scores = gates([svg(inside) for inside in (*BANNED, *ALLOWED)])
    assert [score.note for score in scores] == [f"banned: {kind}" for kind in BANNED.values()] + [""] * len(ALLOWED)
    assert [score.value for score in scores] == [0] * len(BANNED) + [1] * len(ALLOWED)


def test_text_can_be_allowed_to_study_what_it_does() -> None:
    words = svg('<text x="0" y="7" font-size="8">Wm</text>')
    assert [score.value for score in gates([words, svg("<script/>")], allow_text=True)] == [1, 0]
    reward = SvgSimilarity(similarity="pixels", allow_text=True, size=32)
    found = reward([""] * 2, [words, svg("")], reference_svg=[words] * 2)
    assert found[0].value == 1 and found[1].value < 0.9  # it is really drawn


# --- attacks ----------------------------------------------------------------------------------------------------------


def uses(levels: int) -> str:
    steps = "".join(f"<g id='g{i}'>" + f"<use href='#g{i - 1}'/>" * 10 + "</g>" for i in range(1, levels + 1))
    return svg(f"<defs><rect id='g0' width='1' height='1'/>{steps}</defs><use href='#g{levels}'/>")


SLOW = svg(
    '<filter id="f"><feTurbulence baseFrequency="0.5" numOctaves="100000000"/></filter>'
    '<rect width="8" height="8" filter="url(#f)"/>'
)


def entities() -> str:
    steps = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    return f'```\n<!DOCTYPE svg [<!ENTITY a0 "x">{steps}]>\n{svg("<desc>&a9;</desc>")}\n```'


def test_bombs_are_worth_nothing_and_harm_no_neighbour() -> None:
    bombs = [SLOW, uses(12), entities(), svg("<g>" * 30_000 + "</g>" * 30_000), "<svg>\ud800</svg>", svg("x" * 300_000)]
    huge = OPEN.replace("viewBox", 'width="1" height="1e9" viewBox') + "</svg>"
    outputs = [SQUARE]
    for bomb in bombs:
        outputs += [bomb, SQUARE]
    scores = gates([*outputs, huge])
    assert [score.value for score in scores[:-1]] == [1] + [0, 1] * len(bombs)
    assert all(score.status is Status.OK for score in scores)


def test_files_of_the_machine_are_not_drawn(tmp_path: object) -> None:
    """References are drawn without a ban: there, too, nothing can be read."""
    canary = f"{tmp_path}/canary.svg"
    with open(canary, "w") as file:
        file.write(SQUARE)
    inside = [f'<image href="{canary}" width="8" height="8"/>', f'<use href="{canary}#a"/>', ""]
    outputs = [svg(one) for one in inside]
    reward = SvgSimilarity(similarity="pixels", size=32)
    found = reward([""] * 3, [svg("")] * 3, reference_svg=outputs)
    assert [score.value for score in found] == [1, 1, 1]  # all as blank as the drawing


# --- one sandbox after another ----------------------------------------------------------------------------------------


def test_a_drawing_is_the_same_alone_and_among_others() -> None:
    texts = [SQUARE, SLOW, svg('<circle r="5" fill="red"/>')]
    together = draw_afresh(SHOP, texts)
    alone = [draw_afresh(SHOP, [text])[0] for text in texts]
    assert [one.pixels for one in together] == [one.pixels for one in alone]
    assert together[1].timed_out and not together[0].problem


def outcome(status: RunStatus, lines: int) -> Outcome:
    answer = b'{"verdict": "ended", "content": ""}\n'
    return Outcome(status=status, returncode=None, stdout=b'{"ready": true}\n' + answer * lines, stderr=b"", seconds=0)


def test_who_ends_the_sandbox_is_the_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end after two answers, after none, and in order; each starts with the program after the guilty one."""
    runs = [
        outcome(RunStatus.MEMORY, 2),
        outcome(RunStatus.TIMED_OUT, 0),
        outcome(RunStatus.OK, 1),
        outcome(RunStatus.OK, 1),
    ]
    asked = []
    monkeypatch.setattr(rendering, "_run", lambda shop, programs: asked.append(list(programs)) or runs[len(asked) - 1])
    drawn = draw_afresh(SHOP, list("abcdef"))
    assert asked == [list("abcdef"), list("def"), list("ef"), list("f")]
    assert [one.problem[:8] for one in drawn] == [
        "the prog",
        "the prog",
        "it ended",
        "it ended",
        "the prog",
        "the prog",
    ]
    assert [one.timed_out for one in drawn] == [False, False, False, True, False, False]


def test_a_sandbox_that_does_not_start_gives_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering.forget()
    broken = Outcome(status=RunStatus.FAILED, returncode=1, stdout=b"", stderr=b"no resvg", seconds=0)
    monkeypatch.setattr(rendering, "_run", lambda shop, programs: broken)
    scores = gates([SQUARE, "nothing"])
    assert [score.status for score in scores] == [Status.ERRORED] * 2 and "no resvg" in scores[0].note
    with pytest.raises(SandboxError, match="does not start"):
        draw_afresh(SHOP, [SQUARE])


def test_what_was_drawn_is_kept_unless_time_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering.forget()
    runs: list[int] = []
    real = rendering._run
    monkeypatch.setattr(rendering, "_run", lambda shop, programs: runs.append(len(programs)) or real(shop, programs))
    for _ in range(2):
        first, again, late = draw(SHOP, [SQUARE, SQUARE, SLOW])
        assert first.pixels == again.pixels and late.timed_out
    assert runs[0] == 2 and set(runs[1:]) == {1}, "the square once, the slow one again and again"


# --- the formula ------------------------------------------------------------------------------------------------------


def test_text_and_image_are_weighted_and_gated() -> None:
    """1 x text + 0.5 x image; without a reference text only; with a ban nothing."""
    prompts, black = ["a black square"] * 4, torch.zeros(3, 32, 32)
    reward = SvgSimilarity(
        similarity="pixels", encoder="tests.rewards.rules.test_drawings:Shades", image_weight=0.5, size=32
    )
    quarter = svg('<rect width="8" height="6"/>')
    full, no_reference, banned, other = reward(
        prompts, [quarter, quarter, svg("<text/>"), svg("")], reference=[black, None, black, black]
    )
    encoder = reward.encoder
    assert encoder is not None
    # brightness 1/4 is (1/4, -3/4), a text of 14 letters (1, 1.4)
    cosine = (0.25 - 0.75 * 1.4) / (0.25**2 + 0.75**2) ** 0.5 / (1 + 1.4**2) ** 0.5
    assert full.components == pytest.approx({"format": 1, "text": (1 + cosine) / 2, "image": 0.5}, abs=1e-5)
    assert full.value == pytest.approx((1 + cosine) / 2 + 0.25, abs=1e-5)
    assert no_reference.value == pytest.approx((1 + cosine) / 2, abs=1e-5)
    assert banned.value == 0 and banned.components == {"format": 0}
    assert other.components is not None and other.components["image"] == 0
    assert reward.card.high == 1.5 and reward.card.max_prompt_tokens == encoder.max_tokens


def test_prompts_belong_to_their_outputs() -> None:
    left, right = SQUARE, svg('<rect x="4" width="4" height="8"/>')
    reward = SvgSimilarity(similarity="pixels", size=32)
    own = reward(["", ""], [left, right], reference_svg=[left, right])
    swapped = reward(["", ""], [left, right], reference_svg=[right, left])
    assert [score.value for score in own] == [1, 1] and [score.value for score in swapped] == [0, 0]


def test_what_cannot_be_judged_is_missing() -> None:
    reward = SvgSimilarity(size=32)
    scores = reward(["", "", ""], [SQUARE] * 3, reference_svg=[None, "<svg", SQUARE])
    assert [score.status for score in scores] == [Status.NOT_APPLICABLE, Status.ERRORED, Status.OK]
    assert reward([], [], reference_svg=[]) == []


@pytest.mark.parametrize("name", ["pixels", "ssim", "patch_transport"])
def test_similarities_are_1_when_equal_and_fall(name: str) -> None:
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    similarity = load_similarity(name, "test")
    equal = alike(similarity, [(one, one) for one in pictures])
    unlike = alike(similarity, [(one, 1 - one) for one in pictures])
    assert equal == pytest.approx([1, 1, 1], abs=1e-4)
    assert all(0 <= value < 0.99 for value in unlike)
    assert alike(similarity, [(pictures[0], pictures[0][:, :16, :16])])[0] < 1


def test_black_for_white_is_the_least_that_patches_can_give() -> None:
    black, white = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    assert alike(load_similarity("patch_transport", "test"), [(black, white), (black, black)]) == [0, 1]
