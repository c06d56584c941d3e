"""Models that gguf-split has cut into several files, ``NAME-00001-of-00003.gguf`` and so on.

The first file has the metadata; every file describes the tensors that it holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType

from runtime.errors import CheckpointCorrupt
from runtime_gguf.reader import GgufHeader, GgufTensor, read_header

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files of the model that ``path`` is a file of, the first one first, whether they exist or not."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    stem, count, suffix = match["stem"], match["count"], match["suffix"]
    if int(count) < 2:
        return (path,)
    return tuple(path.with_name(f"{stem}-{number:05d}-of-{count}{suffix}") for number in range(1, int(count) + 1))


def read_model(path: Path) -> GgufHeader:
    """Read the headers of all files of a model as one.

    Raises:
        CheckpointCorrupt: a file is damaged, or is not what its name says.
        ModelUnsupported: a file is GGUF of a version or with an encoding that is not known here.
    """
    files = files_of(path)
    tensors: dict[str, GgufTensor] = {}
    headers = [read_header(file) for file in files]
    for number, header in enumerate(headers):
        found = header.metadata.get(NUMBER, 0), header.metadata.get(COUNT, 1) or 1
        if found != (number, len(files)):
            raise CheckpointCorrupt(
                f"{header.path} says that it is file {found[0]} (from 0) of {found[1]}, and by its name it is file "
                f"{number} of {len(files)}; a model's files are named NAME-00001-of-00002.gguf and so on"
            )
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise CheckpointCorrupt(f"tensor {min(twice)} is in {header.path} and in another file of the model")
        tensors.update(header.tensors)
    claimed = headers[0].metadata.get(TENSORS)
    if len(files) > 1 and claimed != len(tensors):
        raise CheckpointCorrupt(f"{files[0]} claims {claimed} tensors in all files, which have {len(tensors)}")
    return GgufHeader(files[0], headers[0].metadata, MappingProxyType(tensors))
