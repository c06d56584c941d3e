"""How a model's weights are kept once loaded, where the configuration leaves it open."""

from __future__ import annotations

from runtime.spi import Checkpoint, LoadOptions


def candidate_options(checkpoint: Checkpoint, *, backend: str, dtype: str, dequantize: str) -> tuple[LoadOptions, ...]:
    """Return the ways to load a model, the preferred one first; the next is for when that does not fit.

    On a CPU only float32 products use a fast BLAS, and packed weights are slower still, so there the model computes
    in float32 and is expanded if memory allows. On a GPU it keeps its own type and stays packed.

    Args:
        checkpoint: the model.
        backend: ``metal``, ``cuda`` or ``cpu``.
        dtype: MLX's name of a floating-point type, or ``auto``.
        dequantize: ``auto``, ``true`` or ``false``.
    """
    if dtype == "auto":
        dtype = "float32" if backend == "cpu" else _own_dtype(checkpoint)
    packed = LoadOptions(dtype=dtype, dequantize=False)
    expanded = LoadOptions(dtype=dtype, dequantize=True)
    if checkpoint.quantization is None or dequantize == "false":
        return (packed,)
    if dequantize == "true":
        return (expanded,)
    return (expanded, packed) if backend == "cpu" else (packed,)


def candidate_contexts(checkpoint: Checkpoint, wanted: int | None, smallest: int = 2048) -> tuple[int, ...]:
    """Return the context lengths to try, in tokens: what is configured, else the model's own and its halves."""
    if wanted is not None:
        return (min(wanted, checkpoint.context),)
    contexts = [checkpoint.context]
    while contexts[-1] // 2 >= smallest:
        contexts.append(contexts[-1] // 2)
    return tuple(contexts)


def candidate_chunks(wanted: int, context: int, smallest: int = 64) -> tuple[int, ...]:
    """Return the prompt tokens of one forward pass to try: what is configured, then a quarter of it and so on.

    The working memory of a chunk grows with its length. A shorter one is slower, by little down to some 64 tokens.
    """
    chunks = [min(wanted, context)]
    while chunks[-1] // 4 >= smallest:
        chunks.append(chunks[-1] // 4)
    return tuple(chunks)


def _own_dtype(checkpoint: Checkpoint) -> str:
    """Return the 16-bit type that the configuration names, else the one that most of the weights are stored in.

    Files may hold packed weights with float16 scales of a model whose activations need bfloat16's range. Where all is
    float32 it is bfloat16, which halves them.
    """
    for key in ("dtype", "torch_dtype"):
        named = checkpoint.text_config.get(key)
        if named in ("bfloat16", "float16"):
            return str(named)
    sizes = {"BF16": 0, "F16": 0}
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.nbytes
    return "bfloat16" if sizes["BF16"] >= sizes["F16"] else "float16"
