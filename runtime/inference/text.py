"""From tokens to text that can be sent: detokenizing, and stopping at stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Detokenizer(Protocol):
    """mlx-lm's streaming detokenizer."""

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...

    @property
    def last_segment(self) -> str: ...


class KnownTokens(Detokenizer):
    """A detokenizer to which tokens that the tokenizer does not have are no text.

    Many models have more rows than their tokenizers have tokens, and one of them can be drawn; mlx-lm's detokenizer for
    SentencePiece fails then.
    """

    def __init__(self, detokenizer: Detokenizer, size: int) -> None:
        self._detokenizer = detokenizer
        self._size = size

    def add_token(self, token: int) -> None:
        if token < self._size:
            self._detokenizer.add_token(token)

    def finalize(self) -> None:
        self._detokenizer.finalize()

    @property
    def last_segment(self) -> str:
        return self._detokenizer.last_segment


class Piece(msgspec.Struct, frozen=True):
    """Text that may be sent, and whether a stop text was met right after it."""

    text: str
    stop: str | None = None


class StopFilter:
    """Lets text through up to the first stop text, however the text is cut into pieces.

    The first is the one that is complete first, which needs no text after it to be known. Text that may be the
    beginning of a stop text is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def feed(self, text: str) -> Piece:
        """Take more text; return what may be sent now. After a piece with a stop nothing more may be fed."""
        self._held += text
        if not self._stops:
            return Piece(self._take(len(self._held)))
        met = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if met:
            # Of those that end at one place the longest, so that nothing of it gets out.
            position, stop = min(met, key=lambda entry: (entry[0] + len(entry[1]), entry[0]))
            return Piece(self._take(position), stop)
        return Piece(self._take(len(self._held) - self._undecided()))

    def finish(self) -> str:
        """Return what is still held back: the text is over, so it was no stop text."""
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _undecided(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class TextStream:
    """Turns a sequence's tokens into text, token by token."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops)

    def feed(self, token: int, *, may_stop: bool = True) -> Piece:
        """Take a token; return the text it completes, which may be none.

        Text of the first tokens that may not stop is in no stop text.
        """
        self._detokenizer.add_token(token)
        text = self._detokenizer.last_segment
        return self._filter.feed(text) if may_stop else Piece(text)

    def finish(self) -> Piece:
        """Take the end of the sequence; return the rest of the text."""
        self._detokenizer.finalize()
        piece = self._filter.feed(self._detokenizer.last_segment)
        return piece if piece.stop is not None else Piece(piece.text + self._filter.finish())
