"""Tokenizers rebuilt from GGUF metadata split text as the originals do."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime.testing.gguf_files import MERGES, TEMPLATE, TOKENS, write_llama
from runtime_gguf.pretokenizers import SPLITS
from runtime_gguf.reader import read_header
from runtime_gguf.tokenizer import write_tokenizer


def _rebuild(folder: Path, **options: Any) -> Tokenizer:
    header = read_header(write_llama(folder / "m.gguf", **options))
    write_tokenizer(header, folder, header.tensors["token_embd.weight"].shape[0])
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


_BY_LLAMA_CPP = json.loads((Path(__file__).parent / "llama_cpp_pieces.json").read_text(encoding="utf-8"))
"""How llama.cpp cuts some texts, for each name of a pre-tokenizer, as ``tests/llama_cpp_reference.py`` has asked it. A
null is a text that llama.cpp's adaptation of the published expression cuts otherwise."""


@pytest.mark.parametrize("group", _BY_LLAMA_CPP["groups"], ids=lambda group: group["names"][0])
def test_text_is_cut_as_llama_cpp_cuts_it(group: dict[str, Any]) -> None:
    for name in group["names"]:
        cut = SPLITS[name].pre_tokenizer()
        for text, pieces in zip(_BY_LLAMA_CPP["texts"], group["pieces"], strict=True):
            if pieces is not None:
                assert [text[start:stop] for _, (start, stop) in cut.pre_tokenize_str(text)] == pieces, (name, text)


def test_every_pre_tokenizer_is_compared_with_llama_cpp() -> None:
    assert {name for group in _BY_LLAMA_CPP["groups"] for name in group["names"]} == set(SPLITS)


class Rebuilt(NamedTuple):
    ours: Tokenizer
    theirs: Any


@pytest.fixture(
    scope="module",
    params=[("gpt-2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer"), ("command-r", "CohereTokenizer")],
    ids=lambda names: names[0],
)
def rebuilt(request: pytest.FixtureRequest) -> Rebuilt:
    import transformers

    name, class_name = request.param
    with tempfile.TemporaryDirectory() as folder:
        ours = _rebuild(Path(folder), keys={"tokenizer.ggml.pre": name})
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    theirs = getattr(transformers, class_name)(vocab={token: i for i, token in enumerate(TOKENS)}, merges=merges)
    return Rebuilt(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.one_of(st.sampled_from("the in a'S1\n "), st.characters(exclude_categories=["Cs"])), max_size=40)
)
def test_ids_are_those_of_the_models_tokenizer_in_transformers(rebuilt: Rebuilt, text: str) -> None:
    ids = rebuilt.theirs.encode(text, add_special_tokens=False)
    assert rebuilt.ours.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize(
    ("tokens", "keys", "ends"),
    [
        ({}, {}, [2, 0]),
        ({"<|im_start|>": "<|eot_id|>"}, {"tokenizer.ggml.eos_token_id": 0}, [0, 1, 2]),
        ({"<|im_end|>": "<x>"}, {"tokenizer.ggml.eos_token_id": 0}, 0),
        ({"<|im_end|>": "<x>"}, {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2}, [0, 2]),
        ({"<|im_end|>": "<x>"}, {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 0xFFFFFFFF}, 0),
        # gpt-oss: <|end|> ends a message, not the answer.
        ({"<|im_start|>": "<|return|>", "<|im_end|>": "<|call|>", "a": "<|end|>"}, {}, [2, 0, 1]),
    ],
)
def test_every_token_that_ends_an_answer_is_in_the_configuration(
    tmp_path: Path, tokens: dict[str, str], keys: dict[str, Any], ends: Any
) -> None:
    listed = [tokens.get(token, token) for token in TOKENS]
    types = [3 if token.startswith("<") and len(token) > 2 else 1 for token in listed]
    keys = {**keys, "tokenizer.ggml.tokens": listed, "tokenizer.ggml.token_type": types}
    header = read_header(write_llama(tmp_path / "m.gguf", keys={**keys, "tokenizer.ggml.merges": ["i n"]}))
    special = write_tokenizer(header, tmp_path, len(TOKENS))
    assert special["eos_token_id"] == ends


def test_merges_and_special_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    tokenizer = _rebuild(tmp_path)
    assert tokenizer.encode("the in the<|im_end|>x").tokens == ["the", "Ġin", "Ġthe", "<|im_end|>", "x"]
    assert tokenizer.get_vocab_size() == len(TOKENS)
    assert tokenizer.decode(tokenizer.encode("the<|im_end|>").ids) == "the", "control tokens are special"


def test_user_defined_tokens_are_whole_and_not_special(tmp_path: Path) -> None:
    types = [3, 3, 4] + [1] * (len(TOKENS) - 3)
    tokenizer = _rebuild(tmp_path, keys={"tokenizer.ggml.token_type": types})
    ids = tokenizer.encode("a<|im_end|>").ids
    assert len(ids) == 2
    assert tokenizer.decode(ids) == "a<|im_end|>"


def test_bos_and_eos_are_put_around_text_where_the_file_says_so(tmp_path: Path) -> None:
    both = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert _rebuild(tmp_path, keys=both).encode("in").tokens == ["<|endoftext|>", "in", "<|im_end|>"]
    assert _rebuild(tmp_path, keys={"tokenizer.ggml.pre": "llama-bpe"}).encode("in").tokens == ["<|endoftext|>", "in"]
    assert _rebuild(tmp_path).encode("in").tokens == ["in"]


def test_transformers_reads_the_tokenizer_and_its_template_as_they_are(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = _rebuild(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Grüße in 2024, the\n\n end 🙂"
    assert loaded.encode(text) == tokenizer.encode(text).ids
    assert loaded.chat_template == TEMPLATE
    assert (loaded.bos_token_id, loaded.eos_token_id) == (0, 2)


def test_a_normalization_table_is_refused_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="precompiled_charsmap"):
        _rebuild(tmp_path, keys={"tokenizer.ggml.model": "llama", "tokenizer.ggml.precompiled_charsmap": [1, 2]})


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from(["gpt2", "llama"]),
    tokens=st.lists(st.text(max_size=6), min_size=1, max_size=20),
    types=st.lists(st.integers(0, 7), min_size=20, max_size=20),
    merges=st.lists(st.text(max_size=8), max_size=4),
    unknown=st.integers(0, 30),
)
def test_a_vocabulary_of_nonsense_is_rebuilt_or_refused(
    model: str, tokens: list[str], types: list[int], merges: list[str], unknown: int
) -> None:
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types[: len(tokens)],
        "tokenizer.ggml.scores": [-float(place) for place in range(len(tokens))],
        "tokenizer.ggml.merges": merges or None,
        "tokenizer.ggml.unknown_token_id": unknown,
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.eos_token_id": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer = _rebuild(Path(folder), keys=keys)
        except CheckpointCorrupt:
            return  # any other exception fails the test
        tokenizer.encode("a text 123")


class Reference(NamedTuple):
    model: Any
    rebuilt: Tokenizer


def _sentencepiece(prefix: bool) -> Reference:
    """Train SentencePiece on a few sentences, and rebuild the result from what llama.cpp's converter would write."""
    corpus = [
        "the quick brown fox jumps over the lazy dog",
        "there is nothing that this model knows of the world",
        "one two three four five six seven eight nine ten 1234567890",
        "What is the capital of the country, and how many people are there?",
    ] * 4
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=trained,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    size = model.get_piece_size()
    types = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(size)
    ]
    vocabulary = ([model.id_to_piece(i) for i in range(size)], [model.get_score(i) for i in range(size)], types)
    with tempfile.TemporaryDirectory() as folder:
        keys = {"tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.add_bos_token": False}
        return Reference(model, _rebuild(Path(folder), spm=vocabulary, keys=keys))


@pytest.fixture(scope="module", params=[True, False], ids=["space prefix", "no prefix"])
def reference(request: pytest.FixtureRequest) -> Reference:
    return _sentencepiece(request.param)


# What SentencePiece itself reserves (its space, and the names of control tokens) is left out.
_TEXT = st.text(
    st.one_of(
        st.sampled_from("the quickbrown ,?"), st.characters(exclude_categories=["Cs"], exclude_characters="▁<\0")
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(text=_TEXT)
def test_sentencepiece_ids_are_sentencepieces_own(reference: Reference, text: str) -> None:
    ids = reference.rebuilt.encode(text).ids
    assert ids == reference.model.encode(text)
    assert reference.rebuilt.decode(ids) == reference.model.decode(ids)
