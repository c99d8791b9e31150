"""Every built-in reward that is pinned ships what `ships` asks for."""

from __future__ import annotations

import pytest
from tests.rewards.encoders.needs import needs_minilm
from tests.rewards.ships import ships

from plaudit.rewards.table import BUILT_IN, UNPINNED

PACKAGES = {"ocr_accuracy": "rapidocr", "reasoning_gym": "reasoning_gym", "stoi": "pystoi", "pesq": "pesq"}
WITH_MINILM = ("set_distance", "bank_similarity", "regularized_relevance")


@pytest.mark.filterwarnings("ignore:Not enough STFT frames")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_minilm if name in WITH_MINILM else ())
        for name in BUILT_IN
        if name not in UNPINNED
    ],
)
def test_ships(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    ships(name)
