"""Files of which parts are on this machine: as long as the whole, with holes where nothing was fetched.

Beside each lies a journal, ``<file>.parts``: a line for each piece, with its first byte, the byte after its last, and
its CRC-32. A piece counts once its line is written, and a process believes a line of another one only after it has
compared the CRC: so neither a crash nor a bad disk passes for a tensor. The loader reads the file as if it were whole;
readers know what not to touch from :attr:`runtime.spi.Checkpoint.absent`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ModelError
from runtime.spi.ranges import Range, Ranges, difference, pieces, size, union
from runtime.spi.source import RangeReader

PIECE_BYTES = 4 << 20
"""Most that is asked for at once, held in memory, and lost when a process dies."""
AGAIN_BYTES = 4 << 10
"""Bytes that are read again rather than read around: a digest's samples would cut a slice into hundreds of pieces."""
READERS = 8
"""Pieces that are read at once."""
POLL_SECONDS = 0.2
"""Between two looks whether another process is done."""

_LINE = re.compile(r"(\d+) (\d+) ([0-9a-f]{8})")

Wanted = Mapping[str, Ranges]
"""Ranges of files, by the files' names."""


class PartialFile:
    """One file, of which this process may read what :attr:`ranges` has. Written under the lock of its folder."""

    def __init__(self, path: Path, size: int) -> None:
        """``size`` is that of the whole file, in bytes."""
        self.path = path
        self.size = size
        self._journal = path.with_name(path.name + ".parts")
        self._pieces: dict[Range, int] = {}
        """CRC-32 of each piece that the journal has."""
        self._known: set[Range] = set()
        """Pieces that this process has written, or compared with their CRC."""
        self.ranges: Ranges = ()
        self.reload()

    @property
    def trusted(self) -> Ranges:
        """What of :attr:`ranges` this process wrote or has compared with its CRC."""
        return union(self._known.copy())

    def reload(self) -> None:
        """Read what other processes have written meanwhile."""
        found: dict[Range, int] = {}
        if self._is_laid_out():
            try:
                lines = self._journal.read_text(encoding="ascii", errors="replace").splitlines()
            except FileNotFoundError:
                lines = []
            for line in lines:
                match = _LINE.fullmatch(line)  # the last line of a process that died is no whole one
                if match is not None and 0 <= int(match[1]) < int(match[2]) <= self.size:
                    found[int(match[1]), int(match[2])] = int(match[3], 16)
        self._pieces = found
        self._known &= found.keys()
        self.ranges = union(found)

    def doubtful(self, wanted: Ranges) -> list[Range]:
        """Name pieces of ``wanted`` that another process wrote and whose bytes are not what it wrote.

        Others are not doubted again.
        """
        wrong = []
        unknown = [piece for piece in self._pieces if piece not in self._known]
        for piece in sorted(unknown):
            if size(difference((piece,), wanted)) == piece[1] - piece[0]:
                continue  # nothing of it is asked for
            if zlib.crc32(self.read(*piece)) == self._pieces[piece]:
                self._known.add(piece)
            else:
                wrong.append(piece)
        return wrong

    def forget(self, wrong: list[Range]) -> None:
        """Take pieces out of the journal."""
        for piece in wrong:
            del self._pieces[piece]
        lines = (_line(start, stop, crc) for (start, stop), crc in self._pieces.items())
        aside = self._journal.with_name(self._journal.name + ".new")
        aside.write_text("".join(lines), encoding="ascii")
        aside.replace(self._journal)
        self.ranges = union(self._pieces)

    def lay_out(self) -> None:
        """Make the file, all of it a hole, unless it is there."""
        if self._is_laid_out():
            return
        # A file of another length is none of ours, and its journal says nothing.
        self._journal.unlink(missing_ok=True)
        with self.path.open("wb") as stream:
            stream.truncate(self.size)
        self._pieces, self._known, self.ranges = {}, set(), ()

    def write(self, start: int, data: bytes) -> None:
        """Write a piece, and then its line."""
        piece = start, start + len(data)
        with self.path.open("r+b") as stream:
            stream.seek(start)
            stream.write(data)
        crc = zlib.crc32(data)
        with self._journal.open("a", encoding="ascii") as journal:
            journal.write(_line(*piece, crc))
        self._pieces[piece] = crc
        self._known.add(piece)
        self.ranges = union((*self.ranges, piece))

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes of the file, zeros where nothing was fetched."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def _is_laid_out(self) -> bool:
        try:
            return self.path.stat().st_size == self.size
        except FileNotFoundError:
            return False


class PartialFolder:
    """A folder of partial files. Processes that fill one take turns; threads of one process as well."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """``sizes`` has the bytes of each whole file, by its name, which is one in this folder."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.files = {name: PartialFile(folder / name, size) for name, size in sizes.items()}
        self._state = threading.Lock()
        """Held while the files' state changes, within this process."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each whole file."""
        return {name: file.size for name, file in self.files.items()}

    def lacking(self, wanted: Wanted) -> dict[str, Ranges]:
        """Return what of ``wanted`` is to be read: what is not here, and the little that is here in between."""
        lacking = {name: difference(ranges, self.files[name].ranges) for name, ranges in wanted.items()}
        return {name: union(ranges, gap=AGAIN_BYTES) for name, ranges in lacking.items() if ranges}

    def fill(self, wanted: Wanted, read: RangeReader, report: Callable[[int, int], None]) -> None:
        """Read what is lacking of ``wanted``.

        Args:
            read: is called from several threads.
            report: is called with the bytes of ``wanted`` that have come, from this process or another, and those
                that were lacking at first; from several threads, one at a time.

        Raises:
            ModelError: the disk has too little room, or ``read`` has no answer.
            RuntimeFault: whatever ``read`` and ``report`` raise. What was read by then is kept.
        """
        with self._state:
            damaged = any(self.files[name].doubtful(ranges) for name, ranges in wanted.items())
            total = _bytes(self.lacking(wanted))
        if not total and not damaged:
            return

        def look() -> None:
            with self._state:
                for name in wanted:
                    self.files[name].reload()
                report(max(0, total - _bytes(self.lacking(wanted))), total)

        with self._locked(look):
            look()
            with self._state:
                for name, ranges in wanted.items():
                    file = self.files[name]
                    file.lay_out()
                    if wrong := file.doubtful(ranges):
                        file.forget(wrong)
                lacking = self.lacking(wanted)
            left = _bytes(lacking)
            self._check_space(left)
            self._read(lacking, read, report, max(0, total - left), max(total, left))

    def _read(
        self, lacking: Wanted, read: RangeReader, report: Callable[[int, int], None], done: int, total: int
    ) -> None:
        over = threading.Event()
        """Set when one piece has failed: what waits then is not begun."""

        def take(name: str, start: int, stop: int) -> None:
            if over.is_set():
                return
            try:
                take_one(name, start, stop)
            except BaseException:
                over.set()
                raise

        def take_one(name: str, start: int, stop: int) -> None:
            nonlocal done
            data = read(name, start, stop)
            if data is None or len(data) != stop - start:
                found = "nothing" if data is None else f"{len(data)} bytes"
                raise ModelError(f"asked for bytes {start} to {stop - 1} of {name}, {found} came; ask again")
            with self._state:
                self.files[name].write(start, data)
                done += len(data)
                report(done, total)

        with ThreadPoolExecutor(READERS, thread_name_prefix="fetch") as pool:
            jobs: list[Future[None]] = [
                pool.submit(take, name, start, stop)
                for name, ranges in lacking.items()
                for start, stop in pieces(ranges, PIECE_BYTES)
            ]
            try:
                finished, _ = wait(jobs, return_when=FIRST_EXCEPTION)
                for job in finished:
                    job.result()
            finally:
                for job in jobs:
                    job.cancel()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ModelError(
                f"{needed >> 20} MiB more are needed on the disk of {self.folder}, which has {free >> 20} MiB free; "
                "make room, or set node.data_dir to a folder on another disk"
            )

    @contextmanager
    def _locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep other processes and threads from filling the folder; a lock ends with the process that has it."""
        import fcntl  # not on every system that can import this module

        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)


def _line(start: int, stop: int, crc: int) -> str:
    # It begins with the end of the line before, which may be torn.
    return f"\n{start} {stop} {crc:08x}"


def _bytes(wanted: Wanted) -> int:
    return sum(size(ranges) for ranges in wanted.values())
