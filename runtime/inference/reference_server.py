"""mlx-lm's own HTTP server in a process of its own, as a baseline of ``runtime bench --load``.

Run as ``python -m runtime.inference.reference_server FOLDER DTYPE DEQUANTIZE PORT``. It computes with the BLAS and the
type of weights that a node has, and goes on past the end of the text, as with a request's ``ignore_eos``.
"""

from __future__ import annotations

import sys
from typing import Any

from runtime.inference.accelerator import prepare


def main(folder: str, dtype: str, *, dequantize: bool, port: str) -> None:
    """Serve until the process is ended."""
    prepare()
    import mlx.core as mx
    from mlx_lm import server
    from mlx_lm.utils import dequantize_model

    class Provider(server.ModelProvider):  # type: ignore[misc]  # mlx-lm ships no annotations
        converted = False

        def load(self, *names: Any) -> tuple[Any, Any]:
            model, tokenizer = super().load(*names)
            if not self.converted:
                self.converted = True
                model.set_dtype(getattr(mx, dtype))
                if dequantize:
                    dequantize_model(model)
                mx.eval(model.parameters())
                tokenizer.eos_token_ids = set()
            return model, tokenizer

    server.ModelProvider = Provider
    sys.argv = ["mlx_lm.server", "--model", folder, "--port", port, "--log-level", "ERROR"]
    server.main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], dequantize=sys.argv[3] == "true", port=sys.argv[4])
