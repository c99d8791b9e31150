"""From a recipe's `model:` to a model of its family."""

from __future__ import annotations

from typing import Any

from plaudit.dotted import made
from plaudit.errors import RecipeError
from plaudit.models.flow import FlowModel
from plaudit.models.tokens import TokenModel
from plaudit.recipe.models import DottedModel, LabModel, Model, Sd3Model, TransformersModel, VisionModel


def build_model(config: Model) -> FlowModel | TokenModel:
    match config:
        case LabModel(family="tokens"):
            from plaudit.models.lab_text import LabTokenModel

            return LabTokenModel(config.weights)
        case LabModel():
            from plaudit.models.lab import LabFlowModel

            return LabFlowModel(config.name, config.weights)
        case Sd3Model():
            from plaudit.models.sd3 import Sd3FlowModel  # diffusers takes seconds to import

            return Sd3FlowModel.from_config(config)
        case TransformersModel():
            from plaudit.models.causal import CausalTokenModel

            return CausalTokenModel.from_config(config)
        case VisionModel():
            from plaudit.models.vision import VisionTokenModel

            return VisionTokenModel.from_config(config)
        case DottedModel():
            model = made(config.factory, "model.factory", "model.arguments", config.arguments)
            _check_complete(model, config)
            return model
    raise RecipeError(f"model.type: {config!r} is not known")


def _check_complete(model: Any, config: DottedModel) -> None:
    """What a run would miss only when it comes to it, at the latest in saving its result."""
    protocol = TokenModel if config.makes == "tokens" else FlowModel
    named = {*protocol.__annotations__, *vars(protocol)} - {"latents"}  # which only given pictures ask for
    asked = sorted(name for name in named if not name.startswith("_"))
    if lacking := [name for name in asked if not hasattr(model, name)]:
        raise RecipeError(
            f"model.factory: {config.factory} made a {type(model).__name__} without {', '.join(lacking)}; with makes "
            f"{config.makes} it needs all of a {protocol.__name__}: {', '.join(asked)}"
        )
