"""What llama.cpp itself makes of the GGUF files of the tests. Needs xllamacpp, which the project does not:

    uv run --with xllamacpp python -m tests.llama_cpp_reference

prints, for each tiny model, the largest difference between llama.cpp's log-probabilities of the next token and
mlx-lm's: the files of the tests are what llama.cpp takes them to be. It also writes ``plugins/llama_cpp_pieces.json``
anew: how llama.cpp cuts some texts, for each pre-tokenizer.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from runtime.testing.gguf_export import export
from runtime_gguf.pretokenizers import SPLITS
from tests.plugins.gguf_models import MODELS, TOKEN_IDS, build_model, next_token_logits, weights_of

PIECES = Path(__file__).parent / "plugins" / "llama_cpp_pieces.json"
TEXTS = (
    "I'Ll don't WE'VE 12345 x",
    "Grüße, naïve CAFÉ ok",
    "a  b\n\n  c\t\r\nd   e ",
    "日本語です。漢字 한국",
    "f(x)=y/2; // !?..\n\nz",
    "ＡＢｃ１２ “hi”，ok",  # noqa: RUF001 - full-width characters are meant
    "नमस्ते e\u0301te\u0301",
    "HelloWorld fooBar XMLHttp",
    "$5.00<=^~|`&#@ 1999-01",
)
ADAPTED = {
    **dict.fromkeys(("tekken", "gpt-4o", "llama4", "kanana2", "minimax-m2"), (TEXTS[6],)),
    "kimi-k2": (TEXTS[6], TEXTS[7]),
}
"""Texts that llama.cpp cuts otherwise than the published expression: it takes combining marks for no letters, and for
Kimi no notice of case."""


def main() -> None:
    """Compare, print, and write."""
    with tempfile.TemporaryDirectory() as folder:
        for name, config in MODELS.items():
            print(f"{name:30} {_difference(Path(folder) / 'm.gguf', config)}", flush=True)
        pieces = {name: _pieces(Path(folder) / "m.gguf", name) for name in SPLITS}
    groups: dict[str, list[str]] = {}
    for name, cut in pieces.items():
        groups.setdefault(json.dumps(cut, ensure_ascii=False), []).append(name)
    lines = [(json.dumps(sorted(names)), cut.replace("], [", "],\n[")) for cut, names in groups.items()]
    written = ",\n".join(f'{{"names": {names}, "pieces": {cut}}}' for names, cut in lines)
    texts = json.dumps(TEXTS, ensure_ascii=False)
    PIECES.write_text(f'{{"texts": {texts},\n"groups": [\n{written}\n]}}\n', encoding="utf-8")


def _serve(file: Path) -> Any:
    """Have llama.cpp load a file; what is returned serves it while it lives."""
    llama: Any = importlib.import_module("xllamacpp")
    settings = llama.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.port, settings.verbosity = 512, 1, 0, 0
    settings.warmup = settings.fit_params = False
    settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    # The file says so, too; llama.cpp writes those keys and does not read them.
    settings.yarn_beta_fast, settings.yarn_beta_slow = 24.0, 2.0
    return llama.Server(settings)


def _difference(file: Path, config: dict[str, Any]) -> str:
    model = build_model(config)
    logits = next_token_logits(model)[0].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    try:
        server = _serve(export(file, config, weights_of(model)))
    except RuntimeError:
        return "llama.cpp refuses a model of this size"
    # No probabilities are told where the likeliest token has no text, so the prompt is shortened until it has.
    for length in range(len(TOKEN_IDS), 0, -1):
        answer = server.handle_completions(
            {"prompt": TOKEN_IDS[:length], "n_predict": 1, "temperature": 0.0, "n_probs": 2000, "cache_prompt": False}
        )
        told = (answer["choices"][0]["logprobs"] or {}).get("content")
        if told:
            found = {top["id"]: top["logprob"] for top in told[0]["top_logprobs"]}
            largest = max(abs(value - expected[length - 1][token]) for token, value in found.items())
            return f"{largest:.5f} over {len(found)} tokens"
    return "llama.cpp tells no probabilities"


def _pieces(file: Path, name: str) -> list[list[str] | None]:
    """Cut the texts: with a vocabulary of all their substrings, and all merges to those, a piece becomes one token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letter_of: dict[int, str] = bytes_to_unicode()
    byte_of = {letter: byte for byte, letter in letter_of.items()}
    tokens = ["<s>", *sorted(letter_of.values())]
    merges: dict[str, None] = {}
    for text in TEXTS:
        spelt = "".join(letter_of[byte] for byte in text.encode())
        parts = sorted({spelt[i:j] for i in range(len(spelt)) for j in range(i + 2, len(spelt) + 1)}, key=len)
        tokens += [part for part in parts if part not in set(tokens)]
        merges.update((f"{part[:cut]} {part[cut:]}", None) for part in parts for cut in range(1, len(part)))
    config = MODELS["llama, yarn, tied"] | {"vocab_size": len(tokens), "num_hidden_layers": 1}
    keys = {
        "tokenizer.ggml.pre": None if name == "default" else name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.eos_token_id": 0,
    }
    server = _serve(export(file, config, weights_of(build_model(config)), keys=keys))
    found: list[list[str] | None] = []
    for text in TEXTS:
        body = json.dumps({"content": text, "add_special": False}).encode()
        request = urllib.request.Request(  # noqa: S310 - llama.cpp's server on this machine
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            ids = json.load(answer)["tokens"]
        cut = [bytes(byte_of[letter] for letter in tokens[token]).decode() for token in ids]
        found.append(None if text in ADAPTED.get(name, ()) else cut)
    return found


if __name__ == "__main__":
    main()
