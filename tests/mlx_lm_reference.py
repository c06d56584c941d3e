"""mlx-lm's own greedy generation over a folder, for comparison: run as a process, jobs in and results out as JSON.

It computes as a node on a CPU does: the same BLAS, weights expanded, and float32 unless a job names another type.

    python mlx_lm_reference.py FOLDER < '[{"messages": [...], "max_tokens": 8}, {"text": "...", "dtype": "bfloat16"}]'
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any


def main(folder: str) -> None:
    """Answer every job with its prompt, and with each token's id, text, and log-probabilities."""
    from runtime.inference.accelerator import prepare

    prepare()
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import dequantize_model

    @cache
    def loaded(dtype: str) -> tuple[Any, Any]:
        model, tokenizer, *_ = load(folder)
        model.set_dtype(getattr(mx, dtype))
        return dequantize_model(model), tokenizer

    results = []
    for job in json.load(sys.stdin):
        model, tokenizer = loaded(job.get("dtype", "float32"))
        if "messages" in job:
            prompt = tokenizer.apply_chat_template(job["messages"], add_generation_prompt=True)
        else:
            prompt = tokenizer.encode(job["text"])
        tokens, logprobs = [], []
        for token, scores in generate_step(mx.array(prompt), model, max_tokens=job.get("max_tokens", 16)):
            tokens.append(int(token))
            logprobs.append(float(scores[token].item()))
            if int(token) in tokenizer.eos_token_ids:
                break
        text = [token for token in tokens if token not in tokenizer.eos_token_ids]
        results.append(
            {
                "prompt": list(prompt),
                "tokens": tokens,
                "texts": [tokenizer.decode([token]) for token in tokens],
                "logprobs": logprobs,
                "text": tokenizer.decode(text),
            }
        )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
