"""The hub's own cache: whole files, which other programs share."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import CheckpointCorrupt, ModelError
from runtime_hub.progress import Meter
from runtime_hub.remote import Remote, fault, hub_errors
from runtime_hub.snapshot import ALLOWED, IGNORED, RepoName, missing_files, wrong_sizes


def cached_file(target: RepoName, commit: str, file: str) -> Path | None:
    """Return where a file of a commit lies in the cache, None if it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(target.repo, file, revision=commit)
    return Path(found) if isinstance(found, str) else None


def referenced(target: RepoName) -> Path | None:
    """Return the folder of the commit that the revision was when the hub was last asked, None if it never was."""
    config = cached_file(target, target.revision, "config.json")
    return None if config is None else config.parent


def cached_folder(target: RepoName, unreachable: ModelError) -> Path:
    """Return the cached snapshot, or raise the reason why the hub was not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                target.repo,
                revision=target.revision,
                allow_patterns=list(ALLOWED),
                ignore_patterns=list(IGNORED),
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        raise unreachable from None
    missing = missing_files(folder)
    if missing:
        raise ModelError(
            f"{unreachable.message}; the copy in the cache is not complete: it lacks {', '.join(missing)}"
        ) from unreachable
    return folder


def fetch_files(target: RepoName, remote: Remote, files: Sequence[str], meter: Meter) -> Path:
    """Download files into the cache, but those that are there, and return the folder of their commit.

    Raises:
        CheckpointCorrupt: a file came twice in another form than the hub says.
        ModelError: the hub cannot be reached, or the disk cannot be written.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    sizes = {file: remote.sizes[file] for file in files}
    fresh = [file for file in files if cached_file(target, remote.commit, file) is None]
    try:
        folder = Path(
            snapshot_download(
                target.repo,
                revision=target.revision,
                allow_patterns=list(files),
                ignore_patterns=list(IGNORED),
                tqdm_class=meter.bar_class(),
            )
        )
        if folder.name != remote.commit:
            # The branch moved between the two requests; what was asked first is what is wanted.
            folder = Path(
                snapshot_download(
                    target.repo,
                    revision=remote.commit,
                    allow_patterns=list(files),
                    ignore_patterns=list(IGNORED),
                    tqdm_class=meter.bar_class(),
                )
            )
        for file in _wrong(folder, sizes, remote, fresh):
            hf_hub_download(target.repo, file, revision=remote.commit, force_download=True)
            fresh.append(file)
    except hub_errors() as error:
        raise fault(target, error) from error
    wrong = _wrong(folder, sizes, remote, fresh)
    if wrong:
        raise CheckpointCorrupt(
            f"{', '.join(wrong)} of {target.repo} came with other contents than the hub says; retry"
        )
    return folder


def _wrong(folder: Path, sizes: dict[str, int], remote: Remote, fresh: Sequence[str]) -> list[str]:
    """Name files that are not what the hub says: by their size, and by their hash too where they have just come."""
    wrong = wrong_sizes(folder, sizes)
    return wrong + [
        file
        for file in fresh
        if file in remote.hashes and file not in wrong and _sha256(folder / file) != remote.hashes[file]
    ]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_space(target: RepoName, needed: int, cache: Path | None = None) -> None:
    """Refuse a download of ``needed`` bytes that the disk of the cache, by default the hub's own, cannot hold.

    Raises:
        ModelError: it cannot.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = cache or Path(HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ModelError(
            f"{target.repo} needs {needed >> 20} MiB more on the disk of {cache}, which has {free >> 20} MiB free; "
            "make room, or set HF_HOME to another disk"
        )
