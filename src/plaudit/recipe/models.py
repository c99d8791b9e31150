"""What generates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from plaudit.recipe.base import Positive, PositiveFloat, Strict
from plaudit.worlds import NETWORKS, world_of

Family = Literal["flow", "tokens"]
if TYPE_CHECKING:
    Network = str
else:
    Network = Literal[tuple(NETWORKS)]


class LoraConfig(Strict):
    """Train low-rank adapters instead of all parameters. `targets` are module-name endings, as peft reads them."""

    rank: Positive = 16
    """Rank of every adapter."""
    alpha: PositiveFloat = 32.0
    """The update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["auto"] = "auto"
    """Endings of the names of the modules that get one, as peft reads them; auto = those that the model suggests."""


def _check_precision(dtype: str, lora: LoraConfig | None) -> None:
    if lora is None and dtype != "float32":
        raise ValueError(
            f"model.dtype: {dtype} with model.lora null; updates of full tuning are lost in half precision, so give float32, or "
            "adapters, which are trained in float32"
        )


class LabModel(Strict):
    """A small pretrained generator that ships with Plaudit: pictures, or sums with a scratchpad."""

    type: Literal["lab"] = "lab"
    """A network that ships with Plaudit."""
    name: Network = "slots"
    """Which one: pictures from slots or pixels, pictures in few steps, sums as texts, or edits of a picture."""
    weights: str | None = None
    """Another safetensors file for the same network."""
    lora: LoraConfig | None = None
    """Low-rank adapters to train; null trains every parameter."""

    @property
    def family(self) -> Family:
        return world_of(self.name).family


class Sd3Model(Strict):
    """Stable Diffusion 3.x through diffusers: a hub name or a local folder."""

    type: Literal["sd3"]
    """Stable Diffusion 3.x through diffusers."""
    path: str
    """A name on the hub or a local folder."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights; adapters are trained in float32."""
    height: Positive = 512
    """Rows of a picture, in pixels."""
    width: Positive = 512
    """Columns of a picture, in pixels."""
    max_sequence_length: Positive = 256
    """Tokens of a prompt that the T5 encoder reads; what is longer is cut with a warning."""
    lora: LoraConfig | None = LoraConfig()
    """Low-rank adapters to train; null trains every parameter."""

    @property
    def family(self) -> Family:
        return "flow"

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> Sd3Model:
        _check_precision(self.dtype, self.lora)
        return self


class _Pretrained(Strict):
    """What models of transformers have in common."""

    path: str
    """A name on the hub or a local folder."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights; adapters are trained in float32."""
    system: str | None = None
    """What every chat begins with."""
    lora: LoraConfig | None = LoraConfig()
    """Low-rank adapters to train; null trains every parameter."""

    @property
    def family(self) -> Family:
        return "tokens"

    @model_validator(mode="after")
    def _keeps_small_updates(self) -> _Pretrained:
        _check_precision(self.dtype, self.lora)
        return self


class TransformersModel(_Pretrained):
    """A causal language model through transformers: a hub name or a local folder."""

    type: Literal["transformers"]
    """A causal language model through transformers."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Whether prompts go through the tokenizer's chat template; auto = if it has one."""


class VisionModel(_Pretrained):
    """A vision-language model through transformers, whose prompts may have pictures among their inputs."""

    type: Literal["vision"]
    """A vision-language model through transformers."""


class DottedModel(Strict):
    """Any other FlowModel or TokenModel: `factory` is a dotted path `package.module:callable`, called with `arguments`."""

    type: Literal["custom"]
    """A model of your own."""
    factory: str
    """Dotted path `package.module:callable` of what makes it."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory; another factory starts without any."""
    makes: Family = "flow"
    """Its family: a FlowModel or a TokenModel."""
    lora: LoraConfig | None = None
    """Low-rank adapters to train; null trains every parameter."""

    @property
    def family(self) -> Family:
        return self.makes


Model = Annotated[LabModel | Sd3Model | TransformersModel | VisionModel | DottedModel, Field(discriminator="type")]
