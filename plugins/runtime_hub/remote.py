"""What the hub says of a repository, and what it says when something is wrong."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import NamedTuple

from runtime.errors import ModelError, ModelNotFound, ModelUnsupported, RuntimeFault
from runtime_hub.snapshot import RepoName, is_wanted


class Remote(NamedTuple):
    """What the hub says of a revision."""

    commit: str
    sizes: dict[str, int]
    """Bytes of each file that is wanted."""
    hashes: dict[str, str]
    """SHA-256 of those that are stored as large files."""


def ask(target: RepoName) -> Remote:
    """Ask the hub for the revision's files.

    Raises:
        ModelNotFound: it has no such repository or revision.
        ModelUnsupported: the repository holds no safetensors.
        ModelError: the hub cannot be reached, or will not say.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(target.repo, revision=target.revision, files_metadata=True, timeout=10)
    except hub_errors() as error:
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
    hashes = {entry.rfilename: entry.lfs.sha256 for entry in info.siblings or [] if entry.lfs is not None}
    return Remote(info.sha, {name: sizes[name] for name in wanted}, hashes)


def hub_errors() -> tuple[type[Exception], ...]:
    """Name what huggingface_hub raises for a network or a server that fails, and for a disk that does."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Its HTTP client was httpx and is httpx2; HfHubHTTPError derives from the client's base of all errors.
    (client_error,) = [base for base in HfHubHTTPError.__bases__ if base is not OSError]
    return (client_error, OfflineModeIsEnabled, OSError)


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
