"""The entries of a model's cache: mlx-lm's classes, and what the executor does with those of other stages' layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from runtime.errors import ModelUnsupported


def advance(entry: Any, batch: int, length: int) -> None:
    """Move an entry on by ``length`` positions that hold nothing, as its offset and its masks go by positions."""
    match entry:
        case CacheList():
            for each in entry.caches:
                advance(each, batch, length)
        case ArraysCache():
            entry.advance(length)
        case KVCache() | QuantizedKVCache():
            entry.offset += length
        case _:
            blank = mx.zeros((batch, 1, length, 1))
            entry.update_and_fetch(blank, blank)


def batched(entry: Any, left_padding: Sequence[int]) -> Any:
    """Return a fresh entry for a batch of sequences, padded on the left to one length, in place of a fresh single one.

    Raises:
        ModelUnsupported: the model keeps a kind of cache that takes one sequence at a time.
    """
    padding = list(left_padding)
    match entry:
        case CacheList():
            return CacheList(*(batched(each, padding) for each in entry.caches))
        case ArraysCache():
            entry.left_padding = mx.array(padding)
            return entry
        case RotatingKVCache() if entry.keep == 0:
            return BatchRotatingKVCache(entry.max_size, padding)
        case KVCache():
            return BatchKVCache(padding)
        case _:
            raise ModelUnsupported(f"the cache {type(entry).__name__} takes one sequence at a time, not a batch")


def trims(cache: list[Any]) -> bool:
    """Whether a sequence's cache can be cut to any shorter length, and not only be used as a whole."""
    return all(_trims(entry) for entry in cache)


def beginning(cache: list[Any], length: int) -> list[Any]:
    """Return a cache with the first ``length`` positions of a sequence's, which stays as it is.

    Keys and values are shared until one of both grows. A cache that does not :func:`trims` is copied, as a whole.
    """
    return _shared(lambda entry: _beginning(entry, length), (cache,))


def merged(caches: Sequence[list[Any]]) -> list[Any]:
    """Return one cache for sequences that have each its own, padded on the left to one length.

    Raises:
        ModelUnsupported: the model keeps a kind of cache that takes one sequence at a time.
    """
    return _shared(lambda *entries: _merged(entries), caches)


def extended(cache: list[Any], more: list[Any]) -> None:
    """Add to a batch's cache the sequences of another one."""
    _shared(lambda entry, other: entry.extend(other), (cache, more))


def filtered(cache: list[Any], rows: Sequence[int]) -> None:
    """Keep these sequences of a batch's cache, in this order."""
    _shared(lambda entry: entry.filter(mx.array(rows)), (cache,))


def extracted(cache: list[Any], row: int) -> list[Any]:
    """Return the cache of one sequence of a batch, as if it had been alone."""
    return _shared(lambda entry: _extracted(entry, row), (cache,))


def _shared(change: Callable[..., Any], caches: Sequence[list[Any]]) -> list[Any]:
    """Change entries, of one cache or of several side by side; what layers share is changed once."""
    done: dict[int, Any] = {}
    results = []
    for entries in zip(*caches, strict=True):
        if id(entries[0]) not in done:
            done[id(entries[0])] = change(*entries)
        results.append(done[id(entries[0])])
    return results


def _trims(entry: Any) -> bool:
    if type(entry) is CacheList:
        return all(_trims(each) for each in entry.caches)
    return type(entry) is KVCache


def _beginning(entry: Any, length: int) -> Any:
    if type(entry) is CacheList:
        return CacheList(*(_beginning(each, length) for each in entry.caches))
    if type(entry) is not KVCache:
        return copy.deepcopy(entry)
    new = KVCache()
    new.offset = length
    if entry.keys is not None:  # a ghost's has none
        new.keys, new.values = entry.keys[..., :length, :], entry.values[..., :length, :]
    return new


def _merged(entries: Sequence[Any]) -> Any:
    match entries[0]:
        case CacheList():
            within = zip(*(entry.caches for entry in entries), strict=True)
            return CacheList(*(_merged(each) for each in within))
        case RotatingKVCache() if entries[0].keep:
            raise ModelUnsupported("a rotating cache that keeps its first tokens takes one sequence at a time")
        case ArraysCache() | KVCache() | RotatingKVCache():
            for entry in entries:
                if isinstance(entry, KVCache) and entry.offset > (0 if entry.keys is None else entry.keys.shape[2]):
                    # Of a layer that runs elsewhere: it has moved on without anything to hold.
                    entry.keys = entry.values = mx.zeros((1, 1, entry.offset, 1))
            return type(entries[0]).merge(list(entries))
        case entry:
            raise ModelUnsupported(f"the cache {type(entry).__name__} takes one sequence at a time, not a batch")


def _extracted(entry: Any, row: int) -> Any:
    match entry:
        case CacheList():
            return CacheList(*(_extracted(each, row) for each in entry.caches))
        case ArraysCache():
            alone = ArraysCache(len(entry.cache))
            alone.cache = [None if array is None else array[row : row + 1] for array in entry.cache]
            return alone
        case BatchKVCache(keys=None):
            return KVCache()
        case BatchRotatingKVCache(keys=None):
            return RotatingKVCache(entry.max_size)
        case _:
            return entry.extract(row)


def quantized(entry: Any, *, bits: int, group_size: int) -> Any:
    """Return an entry that packs its keys and values, where it holds plain ones and no window moves over them.

    The last dimension of keys and values must be a multiple of ``group_size``.
    """
    match entry:
        case CacheList():
            return CacheList(*(quantized(each, bits=bits, group_size=group_size) for each in entry.caches))
        case KVCache():
            return entry.to_quantized(group_size=group_size, bits=bits)
        case _:
            return entry


def kind(entry: Any) -> Any:
    """Return what makes two fresh entries interchangeable: their class and settings, and those of entries within."""
    if isinstance(entry, CacheList):
        return CacheList, tuple(kind(each) for each in entry.caches)
    settings = sorted(
        (name, value) for name, value in vars(entry).items() if isinstance(value, (int, float, str, bool))
    )
    return type(entry), tuple(settings)


def arrays(entries: Iterable[Any]) -> list[mx.array]:
    """Return every array that entries hold."""
    return [leaf for entry in unique(entries) for _, leaf in tree_flatten(entry.state) if isinstance(leaf, mx.array)]


def unique(entries: Iterable[Any]) -> list[Any]:
    """Return each entry once."""
    return list({id(entry): entry for entry in entries}.values())
