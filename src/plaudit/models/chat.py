"""Text to token ids and back, with a tokenizer of transformers.

Without a chat template a prompt is its plain tokens, after the beginning-of-text token if the tokenizer adds one. With one,
prompts and completions are both cut out of what the template renders, so that prompt + completion is the whole conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plaudit.data.prompt import Prompt, is_conversation, must_be_text
from plaudit.errors import DataError, RecipeError
from plaudit.models.tokens import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
PROBE: tuple[Message, ...] = ({"role": "user", "content": "Hi"},)  # what a completion answers while it is rendered


@dataclass(frozen=True, kw_only=True)
class ChatText:
    """How one model reads prompts and answers. `end_ids` are the ends that its configuration names."""

    tokenizer: PreTrainedTokenizerBase
    chat: bool
    system: str | None
    end_ids: frozenset[int]

    def encode(self, prompt: Prompt) -> Ids:
        ids = self._tokens(self._render(self._messages(prompt))) if self.chat else self._plain(prompt)
        if not ids:
            raise DataError(
                f"prompt {prompt.id!r}: {prompt.text!r} has no tokens; a completion needs one to start from"
            )
        return ids

    def encode_completion(self, text: str) -> Ids:
        """The tokens of the text and its end. Like a drawn one it starts at a token of its own: where a tokenizer would
        join its first characters to the last of the prompt, the ids differ from those of the joined text."""
        if not self.chat:
            return (*self._tokens(text), self._plain_end())
        ids = self._tokens(self._answer(text))
        ends = [place for place, token in enumerate(ids) if token in self.end_ids]
        if not ends:
            known = [self.tokenizer.decode([token]) for token in sorted(self.end_ids)]
            raise RecipeError(
                f"model.path: the chat template ends an answer with {self._answer(text)[-20:]!r}, which holds none of "
                f"the tokens that end a completion ({known}); set eos_token_id in generation_config.json, or "
                "model.chat: never"
            )
        return ids[: ends[-1] + 1]

    def decode(self, ids: Sequence[int]) -> str:
        kept = [token for token in ids if token not in self.end_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _messages(self, prompt: Prompt) -> list[Message]:
        given = prompt.inputs.get("messages")
        if given is not None and not is_conversation(given):
            remedy = "give a list of {role, content}, or leave `messages` out"
            raise DataError(f"prompt {prompt.id!r}: inputs.messages {str(given)[:80]} is no conversation; {remedy}")
        must_be_text(given or (), f"prompt {prompt.id!r}")
        messages = list(given or [{"role": "user", "content": prompt.text}])
        if self.system is None or messages[0].get("role") == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def _plain(self, prompt: Prompt) -> Ids:
        if prompt.inputs.get("messages") is not None:
            raise DataError(
                f"prompt {prompt.id!r} is a conversation (inputs.messages), which this model reads as plain text; give "
                "prompts a `text` alone, or a model whose tokenizer has a chat template (and model.chat auto or always)"
            )
        ids, start = self._tokens(prompt.text), self.tokenizer.bos_token_id
        adds_start = start is not None and self.tokenizer(prompt.text, verbose=False).input_ids[:1] == [start]
        return (start, *ids) if adds_start and ids[:1] != (start,) else ids

    def _plain_end(self) -> int:
        own = self.tokenizer.eos_token_id
        return own if own in self.end_ids else min(self.end_ids)

    def _tokens(self, text: str) -> Ids:
        """Without the special tokens that the tokenizer adds: a template has written its own, and an end is no prompt."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _answer(self, text: str) -> str:
        """What the template writes for an answer, where it asks for one."""
        asked = self._render(PROBE)
        whole = self._render([*PROBE, {"role": "assistant", "content": text}], answered=True)
        if not whole.startswith(asked):
            raise RecipeError(
                f"model.path: the chat template asks for an answer with {asked[-40:]!r} but writes a given one as "
                f"{whole[-80:]!r}, so completions that are given cannot continue its prompts; set model.chat: never"
            )
        return whole[len(asked) :]

    def _render(self, messages: Sequence[Message], *, answered: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=not answered
            )
        except TemplateError as error:
            roles = [message.get("role") for message in messages]
            remedy = "some templates take no system message (model.system), or want user and assistant in turn"
            raise DataError(f"the chat template refuses the roles {roles}: {error}; {remedy}") from error


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special token that the template writes after an answer, which a model's configuration often leaves out."""
    probe = "Hello"
    turns = [*PROBE, {"role": "assistant", "content": probe}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    after = rendered.rpartition(probe)[2]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found = [token for token in tokenizer(after, add_special_tokens=False).input_ids if token in special]
    return frozenset(found[:1])
