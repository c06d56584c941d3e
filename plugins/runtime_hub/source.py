"""Downloads snapshots into the hub's own cache, and falls back on that cache where there is no network."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelError, ModelNotFound, ModelUnsupported, RuntimeFault
from runtime.spi import ModelListing, ModelSource, Progress
from runtime_hub.progress import Meter
from runtime_hub.snapshot import ALLOWED, IGNORED, RepoName, is_wanted, missing_files, wrong_sizes

if TYPE_CHECKING:
    from huggingface_hub import CachedRevisionInfo

SOURCE = "hub"


class Remote(NamedTuple):
    """What the hub says of a revision."""

    commit: str
    sizes: dict[str, int]
    """Bytes of each file that is wanted."""


class HubSource(ModelSource):
    """Obeys huggingface_hub's own environment variables: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE."""

    def claims(self, name: str) -> bool:
        """Claim ``org/name`` and ``org/name@revision``."""
        return RepoName.parse(name) is not None

    def local(self) -> list[ModelListing]:
        """List the complete snapshots in the cache, each by a name that fetches it."""
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            cache = scan_cache_dir()
        except CacheNotFound:
            return []
        return [
            ModelListing(
                name=_listed_name(repo.repo_id, revision),
                source=SOURCE,
                bytes=revision.size_on_disk,
                modified=revision.last_modified,
                path=revision.snapshot_path,
            )
            for repo in sorted(cache.repos, key=lambda repo: repo.repo_id)
            if repo.repo_type == "model"
            for revision in sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True)
            if not missing_files(revision.snapshot_path)
        ]

    def fetch(self, name: str, progress: Progress) -> Path:
        """Return the snapshot's folder, after a download of whatever the cache lacks of it."""
        target = RepoName.parse(name)
        if target is None:
            raise ModelNotFound(f"{name!r} is not the name of a repository; write org/name, or org/name@revision")
        try:
            remote = _ask(target)
        except ModelError as unreachable:
            return _cached(target, unreachable)
        return _download(target, remote, name, progress)


def _ask(target: RepoName) -> Remote:
    """Ask the hub for the revision's files.

    Raises:
        ModelNotFound: it has no such repository or revision.
        ModelUnsupported: the repository holds no safetensors.
        ModelError: the hub cannot be reached, or will not say.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(target.repo, revision=target.revision, files_metadata=True, timeout=10)
    except _hub_errors() as error:
        raise fault(target, error) from error
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
    wanted = [name for name in sizes if is_wanted(name)]
    if info.sha is None or not any(name.endswith(".safetensors") for name in wanted):
        kinds = sorted({Path(name).suffix for name in sizes if Path(name).suffix in (".gguf", ".bin", ".pth", ".onnx")})
        found = f"only {', '.join(kinds)} files" if kinds else "no weights"
        raise ModelUnsupported(
            f"the repository {target.repo} has {found}, and safetensors are needed; look for one that has them, "
            "or give the path of a downloaded .gguf file"
        )
    return Remote(info.sha, {name: sizes[name] for name in wanted})


def _cached(target: RepoName, unreachable: ModelError) -> Path:
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


def _download(target: RepoName, remote: Remote, name: str, progress: Progress) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    total = sum(remote.sizes.values())
    cached = [
        file
        for file in remote.sizes
        if isinstance(try_to_load_from_cache(target.repo, file, revision=remote.commit), str)
    ]
    done = sum(remote.sizes[file] for file in cached)
    check_space(target, Path(HF_HUB_CACHE), total - done)
    meter = Meter(name, progress, done=done, total=total)
    try:
        folder = Path(
            snapshot_download(
                target.repo,
                revision=target.revision,
                allow_patterns=list(ALLOWED),
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
                    allow_patterns=list(ALLOWED),
                    ignore_patterns=list(IGNORED),
                    tqdm_class=meter.bar_class(),
                )
            )
        for file in wrong_sizes(folder, remote.sizes):
            hf_hub_download(target.repo, file, revision=remote.commit, force_download=True)
    except _hub_errors() as error:
        raise fault(target, error) from error
    wrong = wrong_sizes(folder, remote.sizes)
    if wrong:
        raise CheckpointCorrupt(f"{', '.join(wrong)} of {target.repo} came with another size than the hub says; retry")
    return folder


def _hub_errors() -> tuple[type[Exception], ...]:
    """Name what huggingface_hub raises for a network or a server that fails, and for a disk that does."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Its HTTP client was httpx and is httpx2; HfHubHTTPError derives from the client's base of all errors.
    (client_error,) = [base for base in HfHubHTTPError.__bases__ if base is not OSError]
    return (client_error, OfflineModeIsEnabled, OSError)


def check_space(target: RepoName, cache: Path, needed: int) -> None:
    """Refuse a download of ``needed`` bytes that the cache's disk cannot hold.

    Raises:
        ModelError: it cannot.
    """
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ModelError(
            f"{target.repo} needs {needed >> 20} MiB more on the disk of {cache}, which has {free >> 20} MiB free; "
            "make room, or set HF_HOME to another disk"
        )


def fault(target: RepoName, error: Exception) -> RuntimeFault:
    """Say what went wrong with the hub. No message repeats a header or a token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = re.sub("//[^/@]*@", "//", constants.ENDPOINT)  # an address may carry a password
    match error:
        case GatedRepoError():
            return ModelError(
                f"{target.repo} is gated: accept its licence at {hub}/{target.repo}, and set HF_TOKEN to a token of "
                "that account"
            )
        case RevisionNotFoundError():
            return ModelNotFound(f"the repository {target.repo} on {hub} has no revision {target.revision}")
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"{hub} has no repository {target.repo}, or it is private and HF_TOKEN is not that of a member"
            )
        case OfflineModeIsEnabled():
            return ModelError(f"{target.repo} is not in the cache, and HF_HUB_OFFLINE forbids to download it")
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return ModelError(f"{hub} denies access to {target.repo}; check HF_TOKEN")
        case HfHubHTTPError():
            return ModelError(f"{hub} answered {error.response.status_code} for {target.repo}; try again later")
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ModelError(
                f"the disk of {constants.HF_HUB_CACHE} is full, and {target.repo} is not complete; make room and ask "
                "again: the download goes on where it stopped"
            )
        case PermissionError():
            return ModelError(f"{error.filename} may not be written, and {target.repo} is to be cached there")
    return ModelError(
        f"{hub} cannot be reached for {target.repo} ({type(error).__name__}), and the cache has no complete copy; "
        "check the network and ask again: a download that broke off goes on where it stopped"
    )


def _listed_name(repo: str, revision: CachedRevisionInfo) -> str:
    if "main" in revision.refs:
        return repo
    return f"{repo}@{min(revision.refs, default=revision.commit_hash)}"
