"""How rotary embeddings are stretched for longer contexts, in GGUF's terms and in Hugging Face's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.metadata import Metadata

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTOR_TENSORS = (FREQS, LONG, SHORT)
"""Tensors that say by what each rotary frequency is divided."""

_OF_YARN = tuple(
    f"rope.scaling.yarn_{name}" for name in ("attn_factor", "ext_factor", "beta_fast", "beta_slow", "log_multiplier")
)

Factors = Mapping[str, Sequence[float]]
"""Those that a file has, by name."""


def rope_scaling(
    file: Metadata, factors: Factors, dimensions: int, known: Sequence[str] = ("linear", "yarn", "llama3")
) -> dict[str, Any] | None:
    """Return ``rope_scaling`` for ``config.json``, or None where nothing is scaled.

    Args:
        file: the metadata.
        factors: the tensors of :data:`FACTOR_TENSORS` that the file has.
        dimensions: how many dimensions of a head are rotated.
        known: the kinds that mlx-lm's model of this architecture applies; it would ignore others without a word.

    Raises:
        ModelUnsupported: it is scaled in another way.
        CheckpointCorrupt: the description is incomplete.
    """
    scaling = _read(file, factors, dimensions)
    if scaling is not None and scaling["rope_type"] not in known:
        raise ModelUnsupported(
            f"{file.path} scales its rotary embedding by {scaling['rope_type']!r}, which mlx-lm's model of "
            f"{file.architecture} does not apply"
        )
    return scaling


def _read(file: Metadata, factors: Factors, dimensions: int) -> dict[str, Any] | None:
    kind = file.text("rope.scaling.type", "none")
    factor = file.real("rope.scaling.factor", 0.0) or file.real("rope.scale_linear", 0.0)
    if FREQS in factors:
        if kind != "none":
            raise ModelUnsupported(f"{file.path} has both rope_freqs and rope scaling {kind!r}, which is not converted")
        return _llama3(file, factors[FREQS], dimensions)
    if LONG in factors:
        return _longrope(file, factors, dimensions)
    if kind in ("none", "linear"):
        file.require("rope.scaling.attn_factor", 1.0, 1.0)
        file.ignore(*_OF_YARN)
    if kind in ("none", "linear") and factor in (0.0, 1.0):
        return None
    if kind in ("none", "linear"):
        return _named("linear", factor=factor)
    if kind == "yarn":
        return _yarn(file, factor)
    raise ModelUnsupported(f"{file.path} scales its rotary embedding by {kind!r}, which is not converted from GGUF")


def _named(kind: str, **settings: Any) -> dict[str, Any]:
    # mlx-lm reads "type" in some models and "rope_type" in others.
    return {"type": kind, "rope_type": kind, **settings}


def _yarn(file: Metadata, factor: float) -> dict[str, Any]:
    file.require("rope.scaling.attn_factor", 1.0, 1.0)
    for key in ("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        file.require(key, 1.0, 1.0)
    if factor <= 0:
        raise CheckpointCorrupt(f"{file.path} scales its rotary embedding by yarn and a factor of {factor:g}")
    return _named(
        "yarn",
        factor=factor,
        original_max_position_embeddings=file.positive("rope.scaling.original_context_length"),
        beta_fast=file.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=file.real("rope.scaling.yarn_beta_slow", 1.0),
        **_yarn_scales(file),
    )


def _yarn_scales(file: Metadata) -> dict[str, float]:
    """Read by what attention is scaled; GGUF has one number for Hugging Face's two."""
    multiplier = file.real("rope.scaling.yarn_log_multiplier", 0.0)
    if not multiplier:
        return {}
    if file.architecture == "deepseek2":
        # Its converter writes a tenth; llama.cpp holds the two for equal.
        return {"mscale": round(multiplier * 10, 6), "mscale_all_dim": round(multiplier * 10, 6)}
    if file.architecture == "mistral3":
        return {"mscale": 1.0, "mscale_all_dim": multiplier}
    raise ModelUnsupported(f"{file.path} scales attention by the logarithm of the context, which is not converted")


def _longrope(file: Metadata, factors: Factors, dimensions: int) -> dict[str, Any]:
    """Read Phi's two lists; how much attention is scaled follows from the context's growth."""
    original, context = file.positive("rope.scaling.original_context_length"), file.positive("context_length")
    if SHORT not in factors or {len(factors[LONG]), len(factors[SHORT])} != {dimensions // 2}:
        raise CheckpointCorrupt(f"{file.path} does not have {dimensions // 2} long and short rope factors")
    if original < 2:
        raise CheckpointCorrupt(f"{file.path} says that it was trained on a context of {original}")
    growth = context / original
    expected = math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0
    file.require("rope.scaling.attn_factor", expected, expected)
    return _named("longrope", long_factor=list(factors[LONG]), short_factor=list(factors[SHORT]))


def _llama3(file: Metadata, factors: Sequence[float], dimensions: int) -> dict[str, Any] | None:
    """Find the settings that give these factors; all published Llama 3 models share all but the first."""
    if all(factor == 1.0 for factor in factors):
        return None
    scaling = _named(
        "llama3",
        factor=max(factors, default=1.0),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    base = file.real("rope.freq_base", 10000.0)
    expected = llama3_factors(dimensions, base, scaling) if base > 0 and scaling["factor"] > 0 else []
    if len(expected) != len(factors) or not all(map(_near, expected, factors)):
        raise ModelUnsupported(f"{file.path} has a rope_freqs.weight that is not Llama 3's, and is not converted")
    return scaling


def llama3_factors(dimensions: int, base: float, scaling: Mapping[str, Any]) -> list[float]:
    """Compute the divisors of the rotary frequencies that Llama 3.1 introduced, one for each pair of dimensions.

    The formula is that of ``_compute_llama3_parameters`` in transformers.
    """
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained = scaling["original_max_position_embeddings"]
    factors = []
    for pair in range(dimensions // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / dimensions)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(float(factor))
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _near(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-3)
