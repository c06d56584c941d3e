"""Every text model of mlx-lm that takes a batch gives each sequence in it what it gives that sequence alone."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from runtime.inference.batchable import reason_against
from runtime.inference.caches import extended, extracted, filtered, merged
from runtime.spi import Checkpoint
from runtime.testing.tiny import tiny_config
from tests.inference.test_every_model import CLAIMED, FAMILIES, kernels_of_metal, subject

__all__ = ["kernels_of_metal"]

PROMPTS = (tuple(range(5, 17)), (7,), tuple(range(3, 40, 2)), tuple(range(11, 18)))
ALONE = {
    "afm7": "other numbers",
    "deepseek_v41": "LayerCache",
    "gemma2": "broadcast",
    "gpt_bigcode": "length-1 arrays",
    "llama4": "ChunkedKVCache",
    "minimax_m3_vl": "other numbers",
    "phi3small": "broadcast",
    "recurrent_gemma": "other numbers",
}
"""Models that take one sequence at a time, and a part of the reason."""


@pytest.mark.usefixtures("kernels_of_metal")
@pytest.mark.parametrize("module", CLAIMED)
def test_each_row_is_what_it_is_alone_while_others_join_and_leave(module: str) -> None:
    config = tiny_config(module)
    checkpoint = Checkpoint(path=Path(module), config=config, tensors={})
    family = next(each for each in FAMILIES.values() if each.refusal(checkpoint) is None)
    reason = reason_against(family, checkpoint)
    assert (reason is not None) == (module in ALONE), reason
    if reason is not None:
        assert ALONE[module] in reason
        return
    model = subject(config).whole()
    alone, shared = ([make_prompt_cache(model) for _ in PROMPTS] for _ in range(2))
    for caches in (alone, shared):
        for prompt, cache in zip(PROMPTS, caches, strict=True):
            if len(prompt) > 1:
                model(mx.array([prompt[:-1]]), cache=cache)
                mx.eval([entry.state for entry in cache])
    rows = [0, 1]
    together = merged([shared[0], shared[1]])
    worst = 0.0
    for turn, (change, row) in enumerate(
        [("", 0), ("", 0), ("join", 2), ("leave", 0), ("join", 3), ("", 0), ("take", 1)]
    ):
        if change == "join":
            extended(together, merged([shared[row]]))
            rows.append(row)
        elif change == "leave":
            filtered(together, [index for index, each in enumerate(rows) if each != row])
            rows.remove(row)
        elif change == "take":
            together = extracted(together, rows.index(row))
            rows = [row]
        tokens = [PROMPTS[row][-1] + turn for row in rows]
        both = model(mx.array([[token] for token in tokens]), cache=together)
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            single = model(mx.array([[token]]), cache=alone[row])
            scale = mx.abs(single).max().item() + 1e-6
            worst = max(worst, mx.abs(both[index : index + 1] - single).max().item() / scale)
    assert worst < 1e-3
