"""What every part of a recipe is built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _dotted(path: str) -> str:
    if ":" not in path:
        raise PydanticCustomError("dotted", "your own, `package.module:thing`")
    return path


Dotted = Annotated[str, AfterValidator(_dotted)]


class Strict(BaseModel):
    """Unknown keys are errors, and the text below a field is its description."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Optimiser(Strict):
    """AdamW."""

    lr: PositiveFloat = 3e-4
    """Learning rate of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """Decays of AdamW's two averages."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
