"""Text comes out as it went in, up to the stop."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.inference.prompt import Tokenizer
from runtime.inference.text import StopFilter, TextStream
from runtime.spi import Text, read_checkpoint
from runtime.testing.models import tiny_llama

texts = st.text("abc ", max_size=40)
stop_lists = st.lists(st.text("abc ", max_size=4), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Go through the text character by character until a stop text is complete; of several it is the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def filtered(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    stop_filter = StopFilter(stops)
    out = ""
    for piece in pieces:
        fed = stop_filter.feed(piece)
        out += fed.text
        if fed.stop is not None:
            return out, fed.stop
    return out + stop_filter.finish(), None


@given(texts, stop_lists, st.lists(st.integers(0, 40)))
def test_however_text_is_cut_it_ends_at_the_stop_text_that_is_complete_first(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(edges)]
    assert filtered(pieces, stops) == expected(text, stops)


@given(texts, stop_lists)
def test_text_is_held_back_only_while_it_may_begin_a_stop_text(text: str, stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    out = ""
    for end, character in enumerate(text, 1):
        fed = stop_filter.feed(character)
        out += fed.text
        if fed.stop is not None:
            return
        held = text[len(out) : end]
        assert out + held == text[:end]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_text_of_no_characters_stops_nothing() -> None:
    assert filtered(["a", "b"], [""]) == ("ab", None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(read_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "tiny")))


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(ANY_TEXT)
def test_characters_of_many_tokens_come_out_whole(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer.detokenizer(continues=True), ())
    pieces = [stream.feed(token).text for token in tokenizer.encode(Text(text))]
    assert "".join([*pieces, stream.finish().text]) == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


def test_a_stop_text_is_found_though_its_characters_are_many_tokens(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer.detokenizer(continues=True), ["世界"])
    pieces = []
    for token in tokenizer.encode(Text("héllo 世界 and more")):
        pieces.append(stream.feed(token))
        if pieces[-1].stop is not None:
            break
    assert ("".join(piece.text for piece in pieces), pieces[-1].stop) == ("héllo ", "世界")


def test_half_a_character_at_the_end_becomes_the_replacement_sign(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer.detokenizer(continues=True), ())
    *begun, _ = tokenizer.encode(Text("世"))
    assert [stream.feed(token).text for token in begun] == ["", ""]
    assert stream.finish().text == "\ufffd"


def test_an_answer_begins_without_the_space_of_its_first_token_and_a_continuation_with_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(Text(" the fox"))
    for continues, text in ((False, "the fox"), (True, " the fox")):
        stream = TextStream(tokenizer.detokenizer(continues=continues), ())
        assert "".join([*(stream.feed(token).text for token in ids), stream.finish().text]) == text


def test_a_stop_text_in_the_first_tokens_that_may_not_stop_is_text(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer.detokenizer(continues=False), ["quick"])
    ids = tokenizer.encode(Text("the quick fox the quick fox"))
    half = len(ids) // 2
    pieces = [stream.feed(token, may_stop=index >= half) for index, token in enumerate(ids)]
    stops = [index for index, piece in enumerate(pieces) if piece.stop is not None]
    assert stops
    assert stops[0] >= half
    assert "".join(piece.text for piece in pieces[: stops[0] + 1]).startswith("the quick fox the")
