"""mlx-lm's own generation in a process of its own, as the baseline of ``runtime bench`` and of tests.

Run as ``python -m runtime.inference.reference FOLDER DTYPE DEQUANTIZE``. It reads requests from standard input, one
JSON object a line (``{"prompt": [ids], "tokens": count}``), and writes one answer for each:
``{"tokens": [ids], "first": seconds, "last": seconds}``, the times counted from the request.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from runtime.inference.accelerator import prepare


def main(folder: Path, dtype: str, *, dequantize: bool) -> None:
    """Load the model as a node would, whole, and serve requests until standard input ends."""
    prepare()
    import mlx.core as mx
    from mlx_lm.generate import stream_generate
    from mlx_lm.utils import dequantize_model, load

    model, tokenizer = load(str(folder), lazy=True)[:2]
    model.set_dtype(getattr(mx, dtype))
    if dequantize:
        dequantize_model(model)
    mx.eval(model.parameters())
    mx.clear_cache()
    # As with a request's ignore_eos.
    tokenizer.eos_token_ids = set()
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        first = None
        ids = []
        for response in stream_generate(model, tokenizer, request["prompt"], max_tokens=request["tokens"]):
            if first is None:
                first = time.perf_counter() - began
            ids.append(int(response.token))
        last = time.perf_counter() - began
        sys.stdout.write(json.dumps({"tokens": ids, "first": first, "last": last}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], dequantize=sys.argv[3] == "true")
