"""What generates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plaudit.recipe.base import Positive, PositiveFloat, Strict

Family = Literal["flow", "tokens"]


class LoraConfig(Strict):
    """Train low-rank adapters instead of all parameters. `targets` are module-name endings, as peft reads them."""

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    targets: tuple[str, ...] | Literal["auto"] = "auto"


def _check_precision(dtype: str, lora: LoraConfig | None) -> None:
    if lora is None and dtype != "float32":
        raise ValueError(
            f"model.dtype: {dtype} with model.lora null; updates of full tuning are lost in half precision, so give float32, or "
            "adapters, which are trained in float32"
        )


class LabModel(Strict):
    """A small pretrained generator that ships with Plaudit: pictures, or sums with a scratchpad."""

    type: Literal["lab"] = "lab"
    name: Literal["slots", "slots-turbo", "pixels", "sums"] = "slots"
    weights: str | None = None  # another safetensors file with the same architecture
    lora: LoraConfig | None = None

    @property
    def family(self) -> Family:
        return "tokens" if self.name == "sums" else "flow"


class Sd3Model(Strict):
    """Stable Diffusion 3.x through diffusers: a hub name or a local folder."""

    type: Literal["sd3"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    height: Positive = 512
    width: Positive = 512
    max_sequence_length: Positive = 256
    lora: LoraConfig | None = LoraConfig()

    @property
    def family(self) -> Family:
        return "flow"

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> Sd3Model:
        _check_precision(self.dtype, self.lora)
        return self


class TransformersModel(Strict):
    """A causal language model through transformers: a hub name or a local folder."""

    type: Literal["transformers"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: Literal["auto", "always", "never"] = "auto"  # whether prompts go through the tokenizer's chat template
    system: str | None = None  # what a chat begins with
    lora: LoraConfig | None = LoraConfig()

    @property
    def family(self) -> Family:
        return "tokens"

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> TransformersModel:
        _check_precision(self.dtype, self.lora)
        return self


class DottedModel(Strict):
    """Any other FlowModel or TokenModel: `factory` is a dotted path `package.module:callable`, called with `arguments`."""

    type: Literal["custom"]
    factory: str
    arguments: dict[str, Any] = {}
    makes: Family = "flow"
    lora: LoraConfig | None = None

    @property
    def family(self) -> Family:
        return self.makes


Model = Annotated[LabModel | Sd3Model | TransformersModel | DottedModel, Field(discriminator="type")]
