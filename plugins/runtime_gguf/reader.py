"""The header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A file is ``GGUF``, a version, a count of tensors and of metadata pairs, the pairs, the tensors' descriptions, padding,
and the tensors' bytes. Counts, lengths and offsets are the file's own claims, so each is compared with the bytes that
are left before anything is read or allocated for it. That is why the reader of the ``gguf`` package, which believes
them, is not used here.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_HEADER_BYTES = 1 << 28
MAX_ENTRIES = 1 << 20
"""Metadata pairs, or tensors."""
MAX_ELEMENTS = 1 << 23
"""Elements of all metadata arrays together. Real ones are vocabularies, of a few hundred thousand each."""
MAX_DIMENSIONS = 4

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SMALLEST_PAIR = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8


class GgufTensor(NamedTuple):
    """Where one tensor lies, and how it is encoded."""

    file: Path
    name: str
    kind: int
    """Number of the ggml type."""
    shape: tuple[int, ...]
    """Rows first: ggml writes its dimensions the other way round."""
    offset: int
    """First byte in the file."""
    nbytes: int


class GgufHeader(NamedTuple):
    """What a GGUF file says of itself."""

    path: Path
    metadata: Mapping[str, Any]
    """Scalars, strings, and lists of them."""
    tensors: Mapping[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Read and check everything but the tensors' bytes.

    Raises:
        CheckpointCorrupt: the file is not GGUF, was cut short, or contradicts itself.
        ModelUnsupported: it is GGUF of a version or with an encoding that is not known here.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Parser(path, mapped).header()
    except (OSError, ValueError) as error:  # mmap of an empty file is a ValueError
        raise CheckpointCorrupt(f"{path} cannot be read as a GGUF file: {error}") from error


class _Parser:
    """A cursor over the file that never moves past its end."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self._path = path
        self._mapped = mapped
        self._size = len(mapped)
        self._at = 0
        self._elements = 0

    def header(self) -> GgufHeader:
        if self._take(4, "its magic number") != MAGIC:
            raise CheckpointCorrupt(f"{self._path} is not a GGUF file: it does not start with the letters GGUF")
        (version,) = self._unpack("I", "its version")
        if version & 0xFFFF == 0:
            raise ModelUnsupported(f"{self._path} is a big-endian GGUF file; convert it to little-endian first")
        if version not in VERSIONS:
            raise ModelUnsupported(f"{self._path} is GGUF version {version}; versions {VERSIONS} can be read")
        tensor_count, pair_count = self._unpack("QQ", "its counts")
        self._plausible(pair_count, _SMALLEST_PAIR, "metadata pairs")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._corrupt(f"metadata {key!r} appears twice")
            (kind,) = self._unpack("I", f"the type of {key!r}")
            metadata[key] = self._value(kind, key, nested=False)
        self._plausible(tensor_count, _SMALLEST_TENSOR, "tensors")
        described = [self._description() for _ in range(tensor_count)]
        return GgufHeader(self._path, MappingProxyType(metadata), self._place(described, self._alignment(metadata)))

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._corrupt(f"general.alignment is {alignment!r}, which is not a power of two")
        return alignment

    def _place(
        self, described: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> Mapping[str, GgufTensor]:
        """Check that every tensor lies inside the file, on its own bytes."""
        from gguf.constants import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in described:
            if name in tensors:
                raise self._corrupt(f"tensor {name!r} is described twice")
            if kind not in sizes:
                raise ModelUnsupported(f"tensor {name!r} of {self._path} has ggml type {kind}, which is not known here")
            block, width = sizes[kind]
            if shape[-1] % block:
                raise self._corrupt(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of its block of {block}")
            nbytes = math.prod(shape) // block * width
            if offset % alignment or start + offset + nbytes > self._size:
                raise self._corrupt(
                    f"tensor {name!r} should take {nbytes} bytes at {start + offset}, and the file has {self._size}; "
                    "it was probably cut short: fetch it again"
                )
            tensors[name] = GgufTensor(self._path, name, kind, shape, start + offset, nbytes)
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in itertools.pairwise(in_order):
            if before.offset + before.nbytes > after.offset:
                raise self._corrupt(f"tensors {before.name!r} and {after.name!r} overlap")
        return MappingProxyType(tensors)

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor's name")
        (dimensions,) = self._unpack("I", f"the dimensions of {name!r}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._corrupt(f"tensor {name!r} has {dimensions} dimensions")
        sides = self._unpack("Q" * dimensions, f"the shape of {name!r}")
        if not all(sides):
            raise self._corrupt(f"tensor {name!r} has the empty shape {sides}")
        kind, offset = self._unpack("IQ", f"the place of {name!r}")
        return name, tuple(reversed(sides)), kind, offset

    def _value(self, kind: int, key: str, *, nested: bool) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind], f"metadata {key!r}")[0]
        if kind == _STRING:
            return self._string(f"metadata {key!r}")
        if kind == _ARRAY and not nested:
            element, count = self._unpack("IQ", f"metadata {key!r}")
            self._elements += count
            if self._elements > MAX_ELEMENTS:
                raise self._corrupt(f"metadata {key!r} claims {count} elements, more than any vocabulary has")
            if element in _SCALARS:
                return list(self._unpack(f"{count}{_SCALARS[element]}", f"metadata {key!r}"))
            return [self._value(element, key, nested=True) for _ in range(count)]
        raise self._corrupt(f"metadata {key!r} has the unknown type {kind}")

    def _string(self, what: str) -> str:
        (length,) = self._unpack("Q", what)
        raw = self._take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._corrupt(f"{what} is not UTF-8: {raw[:40]!r}") from None

    def _unpack(self, form: str, what: str) -> tuple[Any, ...]:
        form = "<" + form
        return struct.unpack(form, self._take(struct.calcsize(form), what))

    def _take(self, length: int, what: str) -> bytes:
        left = min(self._size, MAX_HEADER_BYTES) - self._at
        if length > left:
            raise self._corrupt(f"{what} should take {length} bytes and {left} are left")
        taken = self._mapped[self._at : self._at + length]
        self._at += length
        return taken

    def _plausible(self, count: int, smallest: int, what: str) -> None:
        if count > MAX_ENTRIES or count * smallest > self._size - self._at:
            raise self._corrupt(f"it claims {count} {what} and has {self._size - self._at} bytes left for them")

    def _corrupt(self, finding: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"{self._path} is not a sound GGUF file: {finding}")
