"""From a recipe's `model:` to a model: what a factory of the user's owes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.reference.token_toys import TinyLanguage
from tests.reference.toys import ToyFlowModel

from plaudit.errors import RecipeError
from plaudit.models.build import build_model
from plaudit.recipe.models import DottedModel


class Halved:
    """Half of a flow model, and nothing of a token model."""

    network = None
    latent_shape = (3,)

    def encode(self, prompts: Any) -> Any: ...

    def velocity(self, x: Any, t: Any, condition: Any) -> Any: ...


def test_a_whole_model_of_either_family_is_taken() -> None:
    flow = build_model(DottedModel(type="custom", factory="tests.reference.toys:ToyFlowModel"))
    tokens = build_model(DottedModel(type="custom", factory="tests.reference.token_toys:TinyLanguage", makes="tokens"))
    assert isinstance(flow, ToyFlowModel) and isinstance(tokens, TinyLanguage)


@pytest.mark.parametrize(
    ("makes", "lacking"),
    (
        ("flow", "decode, lora_targets, save, schedule; with makes flow"),
        (
            "tokens",
            "context, decode, encode_completion, end_ids, logits, lora_targets, new_cache, packs, pad_id, save;",
        ),
    ),
)
def test_what_is_missing_is_named_before_a_run(makes: Any, lacking: str) -> None:
    with pytest.raises(RecipeError, match=f"model.factory: {__name__}:Halved made a Halved without {lacking}"):
        build_model(DottedModel(type="custom", factory=f"{__name__}:Halved", makes=makes))
