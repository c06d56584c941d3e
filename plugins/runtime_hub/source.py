"""Models of the hub, in its own cache where they are whole, and in a folder of ours where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import CheckpointCorrupt, ModelError, ModelNotFound
from runtime.spi import ModelFiles, ModelListing, ModelSource, Progress
from runtime.spi.checkpoint import weight_files
from runtime.spi.partial import PartialFolder
from runtime.spi.source import WholeFolder
from runtime_hub.cache import cached_file, cached_folder, check_space, fetch_files, referenced
from runtime_hub.files import HubFiles
from runtime_hub.progress import Meter
from runtime_hub.reader import HubReader, NoRanges, Unreachable
from runtime_hub.remote import Remote, ask
from runtime_hub.snapshot import RepoName, missing_files, wrong_sizes

if TYPE_CHECKING:
    from huggingface_hub import CachedRevisionInfo

SOURCE = "hub"
BLOCK_BYTES = 512
"""What ``st_blocks`` counts."""


class HubSource(ModelSource):
    """Obeys huggingface_hub's own environment variables: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.

    ``parts`` is the folder for files of which only parts are wanted. They must not lie in the hub's cache, where other
    programs would take them for whole.
    """

    def __init__(self, parts: Path) -> None:
        self._parts = parts
        self._folders: dict[Path, PartialFolder] = {}
        """What this process knows of what is in each, which is more than another one can know."""

    def claims(self, name: str) -> bool:
        """Claim ``org/name`` and ``org/name@revision``."""
        return RepoName.parse(name) is not None

    def local(self) -> list[ModelListing]:
        """List the complete snapshots in the cache, each by a name that fetches it; and what is here in parts."""
        return [*self._whole(), *self._partial()]

    def _whole(self) -> list[ModelListing]:
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

    def _partial(self) -> list[ModelListing]:
        listings = []
        for commit in sorted(self._parts.glob("*/*/")):
            files = [file.stat() for file in commit.glob("*.safetensors")]
            repo = commit.parent.name.replace("--", "/", 1)
            main = referenced(RepoName(repo, "main"))
            if files and cached_file(RepoName(repo, commit.name), commit.name, "config.json") is not None:
                listings.append(
                    ModelListing(
                        name=repo if main is not None and main.name == commit.name else f"{repo}@{commit.name}",
                        source=SOURCE,
                        bytes=sum(min(stat.st_size, stat.st_blocks * BLOCK_BYTES) for stat in files),
                        modified=max(stat.st_mtime for stat in files),
                    )
                )
        return listings

    def open(self, name: str, progress: Progress) -> ModelFiles:
        """Fetch configuration, tokenizer and headers; of the weights nothing else."""
        target = _parse(name)
        try:
            remote = ask(target)
        except ModelError as unreachable:
            return self._open_offline(target, name, unreachable, progress)
        config = cached_file(target, remote.commit, "config.json")
        if config is not None and not wrong_sizes(config.parent, remote.sizes):
            return WholeFolder(config.parent)
        try:
            return self._open_parts(target, remote, name, progress)
        except NoRanges:
            return WholeFolder(self.fetch(name, progress))

    def fetch(self, name: str, progress: Progress) -> Path:
        """Return the snapshot's folder, after a download of whatever the cache lacks of it."""
        target = _parse(name)
        try:
            remote = ask(target)
        except ModelError as unreachable:
            return cached_folder(target, unreachable)
        lacking = [file for file in remote.sizes if cached_file(target, remote.commit, file) is None]
        left = sum(remote.sizes[file] for file in lacking)
        check_space(target, left)
        total = sum(remote.sizes.values())
        return fetch_files(target, remote, list(remote.sizes), Meter(name, progress, done=total - left, total=total))

    def _open_parts(self, target: RepoName, remote: Remote, name: str, progress: Progress) -> ModelFiles:
        small = [file for file in remote.sizes if not file.endswith(".safetensors")]
        total = sum(remote.sizes[file] for file in small)
        folder = fetch_files(target, remote, small, Meter(name, progress, done=0, total=total))
        here: dict[str, Path] = {}
        sizes: dict[str, int] = {}
        for file in weight_files(folder, remote.sizes):
            path = cached_file(target, remote.commit, file)
            if path is not None and path.stat().st_size == remote.sizes[file]:
                here[file] = path
            else:
                sizes[file] = remote.sizes[file]
        parts = self._folder(self._parts_folder(target, remote.commit), sizes)
        reader = HubReader(target, remote.commit, sizes)
        return HubFiles(target, remote, name, folder, here, parts, reader, progress)

    def _open_offline(self, target: RepoName, name: str, unreachable: ModelError, progress: Progress) -> ModelFiles:
        """Open what is here: the whole snapshot, or as much of it as was fetched before."""
        try:
            return WholeFolder(cached_folder(target, unreachable))
        except ModelError as fault:
            incomplete = fault
        folder = referenced(target)
        if folder is None:
            raise incomplete
        parts_folder = self._parts_folder(target, folder.name)
        here = {file.name: file for file in folder.glob("*.safetensors")}
        parts = {file.name: file.stat().st_size for file in parts_folder.glob("*.safetensors") if file.name not in here}
        try:
            names = weight_files(folder, {*here, *parts})
        except CheckpointCorrupt:
            raise incomplete from None
        here = {name: file for name, file in here.items() if name in names}
        sizes = {name: size for name, size in parts.items() if name in names}
        reader = Unreachable(incomplete)
        return HubFiles(target, None, name, folder, here, self._folder(parts_folder, sizes), reader, progress)

    def _folder(self, folder: Path, sizes: dict[str, int]) -> PartialFolder:
        known = self._folders.get(folder)
        if known is None or known.sizes() != sizes:
            known = self._folders[folder] = PartialFolder(folder, sizes)
        return known

    def _parts_folder(self, target: RepoName, commit: str) -> Path:
        return self._parts / target.repo.replace("/", "--") / commit


def _parse(name: str) -> RepoName:
    target = RepoName.parse(name)
    if target is None:
        raise ModelNotFound(f"{name!r} is not the name of a repository; write org/name, or org/name@revision")
    return target


def _listed_name(repo: str, revision: CachedRevisionInfo) -> str:
    if "main" in revision.refs:
        return repo
    return f"{repo}@{min(revision.refs, default=revision.commit_hash)}"
