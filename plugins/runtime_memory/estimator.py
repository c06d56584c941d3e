"""What one stage needs, in parts. All arithmetic is in bytes.

==================  =================================================================================================
weights             exact, from the headers, as they are once loaded (:mod:`runtime_memory.weights`)
KV cache            what every layer keeps of every sequence (:mod:`runtime_memory.layers`)
working memory      one chunk through the layers (:mod:`runtime_memory.activations`)
logits              on the last stage: sequences x vocabulary x (width + 12), for the logits, their log-probabilities
                    and a sorted copy in float32. The head runs on the tokens that are sampled from, one a sequence
loading             what the slice takes at most while it is loaded, over all of the above: a module is there twice
                    while it is converted, and nothing but weights is there then
overhead            of the process: what its libraries keep, and the holes that growing caches leave in the heap.
                    Both are measured: a quarter of the caches, unless they are so large that each is a mapping of
                    its own, which goes back to the system whole
==================  =================================================================================================
"""

from __future__ import annotations

from runtime.spi import Checkpoint, LayerSpan, LoadOptions, MemoryEstimate, MemoryEstimator, Part, Workload
from runtime.spi.memory import KV_CACHE
from runtime_memory.activations import retained_bytes, working_bytes
from runtime_memory.caches import Cache
from runtime_memory.layers import layer_caches
from runtime_memory.sizes import Sizes
from runtime_memory.weights import WIDTH, Weights

OVERHEAD = 16 << 20
"""Of the process, whatever it does."""
LARGEST_IN_HEAP = 32 << 20
"""``DEFAULT_MMAP_THRESHOLD_MAX`` of glibc on 64-bit machines; no larger array is ever taken from its heap."""


class SafetensorsEstimator(MemoryEstimator):
    """Arithmetic over the headers and the configuration; what is not known to be bounded counts in full."""

    def __init__(self) -> None:
        self._last: _Model | None = None
        """A policy asks for many slices of one model, and a model may have a hundred thousand tensors."""

    def estimate(
        self, checkpoint: Checkpoint, span: LayerSpan, workload: Workload, options: LoadOptions
    ) -> MemoryEstimate:
        """Return what ``span`` needs.

        Raises:
            CheckpointCorrupt: the configuration lacks a size.
        """
        model = self._last
        if model is None or not model.is_of(checkpoint, workload, options):
            self._last = model = _Model(checkpoint, workload, options)
        return model.estimate(span)


class _Model:
    """What every layer of a model needs, once for all slices."""

    def __init__(self, checkpoint: Checkpoint, workload: Workload, options: LoadOptions) -> None:
        width = WIDTH[options.dtype]
        self._about = checkpoint, workload, options
        self._weights = Weights(checkpoint, options)
        layers = layer_caches(checkpoint)
        kinds = {layer: working_bytes(checkpoint, layer, workload, width) for layer in set(layers)}
        self._working = [kinds[layer] for layer in layers]
        self._retained = [retained_bytes(layer, workload, width) for layer in layers]
        sequences = workload.sequences
        self._kept = [sequences * sum(cache.nbytes(workload, width) for cache in layer) for layer in layers]
        self._holes = [sequences * _holes(layer, workload, width) for layer in layers]
        self._logits = sequences * Sizes.of(checkpoint).vocabulary * (width + 12)

    def is_of(self, checkpoint: Checkpoint, workload: Workload, options: LoadOptions) -> bool:
        """Whether it was made of these."""
        return self._about[0] is checkpoint and self._about[1:] == (workload, options)

    def estimate(self, span: LayerSpan) -> MemoryEstimate:
        """Return what a slice needs."""
        own = slice(span.start, span.stop)
        weights, peak = self._weights.of(span)
        kept, retained = sum(self._kept[own]), self._retained[own]
        working = max(self._working[own]) + sum(retained) - min(retained)
        logits = self._logits if span.is_last else 0
        return MemoryEstimate(
            parts=(
                Part("weights", weights),
                Part(KV_CACHE, kept),
                Part("working memory", working),
                Part("logits", logits),
                Part("loading", max(0, peak - weights - kept - working - logits)),
                Part("overhead", OVERHEAD + sum(self._holes[own])),
            )
        )


def _holes(layer: tuple[Cache, ...], workload: Workload, width: int) -> int:
    """Bytes of the heap that are free and too scattered to be used again or given back."""
    sizes = (cache.nbytes(workload, width) for cache in layer)  # of two arrays of half the size, mostly
    return sum(size for size in sizes if size // 2 <= LARGEST_IN_HEAP) // 4
