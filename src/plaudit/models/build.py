"""From a recipe's `model:` to a model of its family."""

from __future__ import annotations

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.models.flow import FlowModel
from plaudit.models.tokens import TokenModel
from plaudit.recipe.models import DottedModel, LabModel, Model, Sd3Model, TransformersModel


def build_model(config: Model) -> FlowModel | TokenModel:
    match config:
        case LabModel(name="sums"):
            from plaudit.models.lab_tokens import LabTokenModel

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
        case DottedModel():
            return import_dotted(config.factory, "model.factory")(**config.arguments)
    raise RecipeError(f"model.type: {config!r} is not known")
