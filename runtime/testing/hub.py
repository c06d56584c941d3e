"""A stand-in for the Hugging Face Hub: folders served as repositories over real HTTP on loopback.

It speaks what huggingface_hub's downloads use: model information, the file tree, and ``resolve`` with ETag, commit and
ranges (https://huggingface.co/docs/hub/api). Point a process at it with :meth:`StandInHub.environment`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"  # noqa: S105  # opens the stand-in's gated repositories, and nothing else
_CHUNK = 64 * 1024
_LARGE = (".safetensors", ".bin", ".gguf")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_SIGNED = re.compile(r"/signed/(?P<number>\d+)/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Seen(NamedTuple):
    """One request that the stand-in got."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class Repository:
    """A folder as one commit, whose hash depends on the files' contents."""

    def __init__(self, folder: Path, *, gated: bool) -> None:
        self.gated = gated
        self.files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        self.hashes = {
            name: hashlib.sha256(file.read_bytes()).hexdigest()
            for name, file in self.files.items()
            if name.endswith(_LARGE)
        }
        """SHA-256 of what a hub stores as large files."""
        self.etags = {
            name: self.hashes.get(name) or hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
            for name, file in self.files.items()
        }
        listing = json.dumps(self.etags, sort_keys=True).encode()
        self.commit = hashlib.sha1(listing, usedforsecurity=False).hexdigest()


class StandInHub:
    """Serves until its ``with`` block ends.

    Args:
        repositories: folders by ``org/name``.
        gated: likewise, for repositories whose files only :data:`TOKEN` opens.
    """

    def __init__(self, repositories: Mapping[str, Path], gated: Mapping[str, Path] | None = None) -> None:
        self.repositories = {name: Repository(folder, gated=False) for name, folder in repositories.items()}
        self.repositories |= {name: Repository(folder, gated=True) for name, folder in (gated or {}).items()}
        self.seen: list[Seen] = []
        self.sent = 0
        """Bytes of files that were sent, without headers."""
        self.signed_uses: int | None = None
        """Send those who ask for a large file on to an address of another host, good for so many requests."""
        self.uses: list[int] = []
        """How often each such address was used."""
        self.ranges = True
        """Whether parts of files are sent; a server without ranges sends them whole."""
        self.excess = 0
        """Bytes that are sent after each part of a file, which nobody asked for."""
        self.packs = False
        """Whether parts of files are sent in gzip's form, though nobody asked for that."""
        self._counting = threading.Lock()
        self.stall_after: int | None = None
        """Stop the next body that is longer after this many bytes, set :attr:`stalled`, and wait for the client to go
        or for :attr:`resume`."""
        self.cut_after: int | None = None
        """Close the connection of the next body that is longer after this many bytes."""
        self.stalled = threading.Event()
        self.resume = threading.Event()
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="stand-in-hub")

    def count(self, sent: int) -> None:
        """Add to :attr:`sent`."""
        with self._counting:
            self.sent += sent

    @property
    def url(self) -> str:
        """Base address, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables for a process whose hub this is, with its cache in ``home``."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def __enter__(self) -> StandInHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    stand_in: StandInHub

    def do_GET(self) -> None:  # http.server's name
        self._answer(body=True)

    def do_HEAD(self) -> None:  # http.server's name
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's signature
        del format, args

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.stand_in.seen.append(
            Seen(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        for pattern, answer in (
            (_TREE, self._tree),
            (_INFO, self._info),
            (_SIGNED, self._signed),
            (_FILE, self._resolve),
        ):
            match = pattern.fullmatch(path)
            if match is None:
                continue
            repository = self.stand_in.repositories.get(match["repo"])
            if repository is None:
                self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
            elif match["revision"] not in (None, "main", repository.commit):
                self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
            else:
                answer(match, repository, body)
            return
        self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def _info(self, match: re.Match[str], repository: Repository, body: bool) -> None:
        siblings: list[dict[str, object]] = []
        for name, file in repository.files.items():
            size = file.stat().st_size
            entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": repository.etags[name]}
            if name in repository.hashes:
                entry["lfs"] = {"size": size, "sha256": repository.hashes[name], "pointerSize": 134}
            siblings.append(entry)
        info = {
            "id": match["repo"],
            "modelId": match["repo"],
            "sha": repository.commit,
            "private": False,
            "gated": "manual" if repository.gated else False,
            "tags": [],
            "downloads": 0,
            "siblings": siblings,
        }
        self._json(info, body)

    def _tree(self, match: re.Match[str], repository: Repository, body: bool) -> None:
        del match
        entries = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": repository.etags[name]}
            for name, file in repository.files.items()
        ]
        self._json(entries, body)

    def _json(self, value: object, body: bool) -> None:
        content = json.dumps(value).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _resolve(self, match: re.Match[str], repository: Repository, body: bool) -> None:
        hub, name = self.stand_in, match["path"]
        if hub.signed_uses is None or name not in repository.hashes:
            self._file(match, repository, body)
            return
        hub.uses.append(0)
        self.send_response(HTTPStatus.FOUND)
        address = f"http://localhost:{urlsplit(hub.url).port}/signed/{len(hub.uses) - 1}"
        self.send_header("Location", f"{address}/{match['repo']}/{repository.commit}/{name}")
        self.send_header("X-Linked-Size", str(repository.files[name].stat().st_size))
        self.send_header("X-Linked-ETag", f'"{repository.etags[name]}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _signed(self, match: re.Match[str], repository: Repository, body: bool) -> None:
        hub, number = self.stand_in, int(match["number"])
        if hub.signed_uses is None or hub.uses[number] >= hub.signed_uses:
            self._refuse(HTTPStatus.FORBIDDEN, "Expired")
            return
        hub.uses[number] += 1
        self._file(match, repository, body)

    def _file(self, match: re.Match[str], repository: Repository, body: bool) -> None:
        file = repository.files.get(match["path"])
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(HTTPStatus.UNAUTHORIZED, "GatedRepo")
            return
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", repository.commit)
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.stand_in.ranges else None
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else len(content), len(content) - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        part = content[first : last + 1]
        if asked:
            part += bytes(self.stand_in.excess)
        if asked and self.stand_in.packs:
            part = gzip.compress(part)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{repository.etags[match["path"]]}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.end_headers()
        if body:
            self._send(part)

    def _send(self, content: bytes) -> None:
        hub = self.stand_in
        end = len(content)
        stall = hub.stall_after is not None and end > hub.stall_after
        cut = not stall and hub.cut_after is not None and end > hub.cut_after
        if stall:
            end, hub.stall_after = hub.stall_after or 0, None
        elif cut:
            end, hub.cut_after = hub.cut_after or 0, None
        try:
            for start in range(0, end, _CHUNK):
                chunk = content[start : min(end, start + _CHUNK)]
                self.wfile.write(chunk)
                hub.count(len(chunk))
            self.wfile.flush()
            if stall:
                hub.stalled.set()
                hub.resume.wait()
                self.wfile.write(content[end:])
        except ConnectionError:
            self.close_connection = True  # the client went away, which is its right
        if cut:
            self.close_connection = True

    def _refuse(self, status: HTTPStatus, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()
