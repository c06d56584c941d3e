"""What one stage needs, in parts. All arithmetic is in bytes.

==================  =================================================================================================
weights             exact, from the headers, as they are once loaded (:mod:`runtime_memory.weights`)
KV cache            what every layer keeps of every sequence (:mod:`runtime_memory.layers`)
working memory      one chunk through one layer (:mod:`runtime_memory.activations`)
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
from runtime_memory.activations import working_bytes
from runtime_memory.caches import Cache
from runtime_memory.layers import layer_caches
from runtime_memory.sizes import Sizes
from runtime_memory.weights import WIDTH, loaded_modules, loading_peak

OVERHEAD = 16 << 20
"""Of the process, whatever it does."""
LARGEST_IN_HEAP = 32 << 20
"""``DEFAULT_MMAP_THRESHOLD_MAX`` of glibc on 64-bit machines; no larger array is ever taken from its heap."""


class SafetensorsEstimator(MemoryEstimator):
    """Arithmetic over the headers and the configuration; what is not known to be bounded counts in full."""

    def estimate(
        self, checkpoint: Checkpoint, span: LayerSpan, workload: Workload, options: LoadOptions
    ) -> MemoryEstimate:
        """Return what ``span`` needs.

        Raises:
            CheckpointCorrupt: the configuration lacks a size.
        """
        width = WIDTH[options.dtype]
        modules = tuple(loaded_modules(checkpoint, span, options))
        caches = layer_caches(checkpoint)[span.start : span.stop]
        weights = sum(module.resident for module in modules)
        kept = workload.sequences * sum(cache.nbytes(workload, width) for layer in caches for cache in layer)
        working = working_bytes(checkpoint, caches, workload, width)
        vocabulary = Sizes.of(checkpoint).vocabulary
        logits = workload.sequences * vocabulary * (width + 12) if span.is_last else 0
        return MemoryEstimate(
            parts=(
                Part("weights", weights),
                Part(KV_CACHE, kept),
                Part("working memory", working),
                Part("logits", logits),
                Part("loading", max(0, loading_peak(modules) - weights - kept - working - logits)),
                Part("overhead", OVERHEAD + _holes(caches, workload, width)),
            )
        )


def _holes(caches: tuple[tuple[Cache, ...], ...], workload: Workload, width: int) -> int:
    """Bytes of the heap that are free and too scattered to be used again or given back."""
    arrays = (cache.nbytes(workload, width) for layer in caches for cache in layer)  # two of half the size, mostly
    return workload.sequences * sum(array for array in arrays if array // 2 <= LARGEST_IN_HEAP) // 4
