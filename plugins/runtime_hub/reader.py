"""Reads parts of a repository's files over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import ModelError, RuntimeFault
from runtime_hub.remote import fault, hub_errors
from runtime_hub.snapshot import RepoName

ATTEMPTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice as long."""
_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that are worth another attempt."""


class NoRanges(ModelError):
    """The server sends whole files only."""

    code = "no_ranges"


class HubReader:
    """Reads ranges of the files of one commit, which never change; the hub is asked once where each file lies."""

    def __init__(self, target: RepoName, commit: str, sizes: Mapping[str, int]) -> None:
        """``sizes`` has the bytes of each whole file."""
        self._target = target
        self._commit = commit
        self._sizes = sizes
        self._locations: dict[str, str] = {}

    def __call__(self, file: str, start: int, stop: int) -> bytes | None:
        """Return bytes ``start`` to ``stop - 1``.

        Raises:
            ModelError: the hub cannot be reached, denies access, or sends something else.
        """
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            location = self._locations.get(file)
            try:
                return self._read(file, start, stop)
            except hub_errors() as error:
                # An address that was signed for some time is refused afterwards, and asked for again.
                if self._locations.get(file) == location:
                    self._locations.pop(file, None)
                if attempt == ATTEMPTS or not (_is_passing(error) or (location is not None and _is_refusal(error))):
                    raise fault(self._target, error) from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _read(self, file: str, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

        location = self._location(file)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", **_authorization(location)}
        with get_session().stream("GET", location, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            self._check(response, file, start, stop)
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > stop - start:
                    raise ModelError(
                        f"{_server(response)} was asked for {stop - start} bytes of {self._target.repo}/{file} and "
                        "sends more; the rest was not read"
                    )
        return bytes(content)

    def _check(self, response: Any, file: str, start: int, stop: int) -> None:
        """Look at what is coming before it is read: the whole file may be larger than the memory."""
        expected = f"bytes {start}-{stop - 1}/{self._sizes[file]}"
        found = response.headers.get("Content-Range")
        server = _server(response)
        if response.status_code == 206 and found == expected:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                # The client unpacks as much as came at once, which may be more than the memory holds.
                raise ModelError(
                    f"{server} was asked for {self._target.repo}/{file} as it is and sends it packed ({encoding}); "
                    "look whether a proxy does that"
                )
            return
        if response.status_code == 200:
            raise NoRanges(f"{server} sends {self._target.repo}/{file} as a whole only")
        raise ModelError(
            f"{server} was asked for {expected} of {self._target.repo}/{file} and sends {found or 'no range'}; "
            "the file is another one than the hub describes"
        )

    def _location(self, file: str) -> str:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        known = self._locations.get(file)
        if known is None:
            known = get_hf_file_metadata(hf_hub_url(self._target.repo, file, revision=self._commit)).location
            self._locations[file] = known
        return known


class Unreachable:
    """Stands for a hub that cannot be asked."""

    def __init__(self, why: RuntimeFault) -> None:
        self._why = why

    def __call__(self, file: str, start: int, stop: int) -> bytes | None:
        """Raise the reason."""
        del file, start, stop
        raise self._why


def _server(response: Any) -> str | None:
    """Name the host that answered."""
    return urlsplit(str(response.url)).hostname


def _authorization(location: str) -> dict[str, str]:
    """Return the hub's own headers for the hub, and none for the servers that it sends us to."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, and not in __all__

    if urlsplit(location).netloc != urlsplit(constants.ENDPOINT).netloc:
        return {}
    return dict(build_hf_headers())


def _is_passing(error: Exception) -> bool:
    """Whether an error may be over soon: a broken connection, or a server that is busy."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in _PASSING


def _is_refusal(error: Exception) -> bool:
    """Whether a server denies what it is asked for."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404, 410)
