"""From a request's prompt to token ids, with the model's own tokenizer and chat template.

Everything here blocks; it runs in a worker thread. The first import of mlx-lm's tokenizers takes over a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.errors import InvalidRequest, ModelError
from runtime.inference.reclaim import trim
from runtime.inference.text import Detokenizer, KnownTokens
from runtime.spi import Chat, Checkpoint, Text, Tokens, TokenText


class Tokenizer:
    """A model's tokenizer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the tokenizer from the model's folder.

        Raises:
            ModelError: its files are missing, damaged, or need code from the model's repository.
        """
        from mlx_lm.tokenizer_utils import load

        self._path: Path = checkpoint.path
        self._vocabulary = int(checkpoint.text_config.get("vocab_size", 0))
        try:
            self._wrapper: Any = load(
                checkpoint.path,
                # Code that comes with a model is never run, and never asked about.
                tokenizer_config_extra={"trust_remote_code": False},
                eos_token_ids=_eos_ids(checkpoint),
            )
        except Exception as error:
            # transformers raises whatever its parsers meet; all of it means that the files cannot be used.
            raise ModelError(f"the tokenizer in {checkpoint.path} cannot be loaded: {error}") from error
        self._size = len(self._wrapper._tokenizer)
        # Reading a tokenizer's JSON takes many times its size for a moment.
        trim()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return tuple(sorted(self._wrapper.eos_token_ids))

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template."""
        template = self._wrapper.chat_template
        return template if isinstance(template, str) else None

    def encode(self, prompt: Chat | Text | Tokens) -> tuple[int, ...]:
        """Return the prompt's token ids.

        Raises:
            InvalidRequest: the prompt is empty, or the model has no chat template, or its template refuses the turns.
        """
        match prompt:
            case Tokens(ids):
                bad = next((token for token in ids if not 0 <= token < self._vocabulary), None)
                if bad is not None:
                    raise InvalidRequest(f"token {bad} is not one of the model's {self._vocabulary}", param="prompt")
                tokens = ids
            case Text(text):
                tokens = self._encode_text(text)
            case Chat():
                tokens = self._encode_chat(prompt)
        if not tokens:
            raise InvalidRequest("the prompt is empty; give the model at least one token", param="prompt")
        return tokens

    def detokenizer(self, *, continues: bool) -> Detokenizer:
        """Make a streaming detokenizer for one sequence.

        mlx-lm's drop a space at the very beginning, as suits an answer. A text that ``continues`` its prompt needs
        that space, so there it begins after some other text.
        """
        detokenizer: Detokenizer = self._wrapper.detokenizer
        if continues:
            for token in self._wrapper.encode("a", add_special_tokens=False):
                detokenizer.add_token(token)
            _ = detokenizer.last_segment
        return KnownTokens(detokenizer, self._size)

    def token_text(self, token: int) -> TokenText:
        """Return one token as text and bytes; bytes that are no whole character become the replacement sign."""
        text = self._wrapper.decode([token])
        if "\ufffd" in text:
            raw = _raw_bytes(self._wrapper.convert_ids_to_tokens([token])[0])
            return TokenText(token, text, raw if raw is not None else text.encode())
        return TokenText(token, text, text.encode())

    def _encode_text(self, text: str) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not text: {error.reason}", param="prompt") from error
        return tuple(self._wrapper.encode(text))

    def _encode_chat(self, chat: Chat) -> tuple[int, ...]:
        if not chat.messages:
            raise InvalidRequest("messages is empty; send at least one", param="messages")
        if not self._wrapper.has_chat_template:
            raise InvalidRequest(
                f"the model in {self._path.name} has no chat template; use a completion endpoint with plain text",
                param="messages",
            )
        turns = [{"role": message.role, "content": message.content} for message in chat.messages]
        continues = turns[-1]["role"] == "assistant"
        try:
            return tuple(
                self._wrapper.apply_chat_template(
                    turns, add_generation_prompt=not continues, continue_final_message=continues
                )
            )
        except Exception as error:
            # Templates are programs that come with the model; many raise on roles or orders they do not know.
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _eos_ids(checkpoint: Checkpoint) -> list[int] | None:
    """End-of-text tokens as mlx-lm takes them: from generation_config.json, else config.json, else the tokenizer."""
    from mlx_lm.utils import load_config

    value = load_config(checkpoint.path).get("eos_token_id")
    if isinstance(value, int):
        return [value]
    return [int(token) for token in value] if isinstance(value, list) else None


def _raw_bytes(token: str) -> bytes | None:
    """Return the bytes of a token in byte-level BPE's or byte-fallback's spelling, None if it is in neither."""
    if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
        return bytes([int(token[3:5], 16)])
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return None


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()
