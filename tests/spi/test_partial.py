"""Files with holes: what is read once is kept, what is damaged is read again, and nobody reads the same twice."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import ModelError, RuntimeFault
from runtime.spi import partial as module
from runtime.spi.partial import PartialFolder, Wanted
from runtime.spi.ranges import Range, size, union

CONTENT = bytes(number * 7 % 251 for number in range(1000))


class Afar:
    """Where the files come from."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.read: Counter[int] = Counter()
        self.fail_after: int | None = None
        self._lock = threading.Lock()

    def __call__(self, file: str, start: int, stop: int) -> bytes | None:
        with self._lock:
            if self.fail_after is not None and sum(self.read.values()) >= self.fail_after:
                raise ModelError("the line is cut")
            self.read.update(range(start, stop))
        return self.content[start:stop]


def fill(folder: PartialFolder, afar: Afar, *ranges: Range) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    folder.fill({"w": union(ranges)}, afar, lambda done, total: told.append((done, total)))
    return told


def opened(path: Path) -> PartialFolder:
    """What another process would see."""
    return PartialFolder(path, {"w": len(CONTENT)})


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 64)
    monkeypatch.setattr(module, "AGAIN_BYTES", 0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=4), max_size=4))
def test_whatever_is_asked_for_is_there_and_was_read_once(
    tmp_path_factory: pytest.TempPathFactory, orders: list[list[Range]]
) -> None:
    path = tmp_path_factory.mktemp("parts")
    afar = Afar()
    for order in orders:
        folder = opened(path)
        told = fill(folder, afar, *order)
        wanted: Wanted = {"w": union(order)}
        assert not folder.lacking(wanted)
        assert not told or told[-1][0] == told[-1][1]
        for start, stop in wanted["w"]:
            assert folder.files["w"].read(start, stop) == CONTENT[start:stop]
    assert all(count == 1 for count in afar.read.values())


def test_a_hole_takes_no_room_and_the_file_is_as_long_as_the_whole(tmp_path: Path) -> None:
    folder = PartialFolder(tmp_path, {"w": 1 << 40})
    folder.fill({"w": ((1 << 39, (1 << 39) + 100),)}, lambda file, start, stop: b"x" * (stop - start), lambda *_: None)
    stat = (tmp_path / "w").stat()
    assert stat.st_size == 1 << 40
    assert stat.st_blocks * 512 < 1 << 20


def test_a_download_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    afar = Afar()
    afar.fail_after = 300
    with pytest.raises(ModelError, match="the line is cut"):
        fill(opened(tmp_path), afar, (0, 1000))
    had = sum(afar.read.values())
    assert had >= 300
    afar.fail_after = None
    again = opened(tmp_path)
    told = fill(again, afar, (0, 1000))
    assert set(afar.read.values()) == {1}
    assert told[0][1] == told[-1][0] == 1000 - had, "what was there before is no part of this download"
    assert again.files["w"].read(0, 1000) == CONTENT


def test_a_line_that_a_dying_process_left_half_written_counts_for_nothing(tmp_path: Path) -> None:
    afar = Afar()
    fill(opened(tmp_path), afar, (0, 64), (100, 164))
    journal = tmp_path / "w.parts"
    journal.write_text(journal.read_text()[:-5])
    again = opened(tmp_path)
    assert size(again.files["w"].ranges) == 64
    fill(again, afar, (0, 200))
    assert opened(tmp_path).files["w"].ranges == ((0, 200),)


def test_bytes_that_changed_on_the_disk_are_read_again(tmp_path: Path) -> None:
    afar = Afar()
    fill(opened(tmp_path), afar, (0, 640))
    with (tmp_path / "w").open("r+b") as stream:
        stream.seek(200)
        stream.write(b"\0\0\0\0\0")
    again = opened(tmp_path)
    told = fill(again, afar, (0, 640))
    assert again.files["w"].read(0, 640) == CONTENT[:640]
    assert sum(afar.read.values()) == 640 + 64, "one piece was read twice"
    assert told[-1] == (64, 64)


def test_a_file_of_another_length_is_begun_anew(tmp_path: Path) -> None:
    fill(opened(tmp_path), Afar(), (0, 100))
    longer = PartialFolder(tmp_path, {"w": 2000})
    assert longer.lacking({"w": ((0, 100),)}) == {"w": ((0, 100),)}
    longer.fill({"w": ((0, 10),)}, Afar(), lambda *_: None)
    assert longer.files["w"].ranges == ((0, 10),)


def test_only_what_this_process_wrote_or_checked_is_trusted(tmp_path: Path) -> None:
    fill(opened(tmp_path), Afar(), (0, 64), (500, 564))
    again = opened(tmp_path)
    assert size(again.files["w"].trusted) == 0
    fill(again, Afar(), (0, 10))
    assert again.files["w"].trusted == ((0, 64),)


def test_those_who_want_the_same_at_once_read_it_once_and_all_see_it_grow(tmp_path: Path) -> None:
    afar = Afar()
    began, go = threading.Event(), threading.Event()

    def slow(file: str, start: int, stop: int) -> bytes | None:
        began.set()
        assert go.wait(10)
        return afar(file, start, stop)

    told: list[tuple[int, int]] = []
    waits = threading.Event()

    def report(done: int, total: int) -> None:
        told.append((done, total))
        waits.set()

    wanted: Wanted = {"w": ((0, 640),)}
    first = threading.Thread(target=lambda: opened(tmp_path).fill(wanted, slow, lambda *_: None))
    first.start()
    assert began.wait(10)
    second = threading.Thread(target=lambda: opened(tmp_path).fill(wanted, afar, report))
    second.start()
    assert waits.wait(10)
    go.set()
    first.join(10)
    second.join(10)
    assert set(afar.read.values()) == {1}
    assert told[0] == (0, 640)
    assert told[-1] == (640, 640)


def test_an_answer_of_another_length_is_no_answer(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with pytest.raises(ModelError, match=r"asked for bytes 0 to 9 of w, 5 bytes came"):
        folder.fill({"w": ((0, 10),)}, lambda file, start, stop: b"short", lambda *_: None)
    with pytest.raises(ModelError, match="nothing came"):
        folder.fill({"w": ((0, 10),)}, lambda file, start, stop: None, lambda *_: None)
    assert folder.files["w"].ranges == ()


def test_too_little_room_is_said_before_anything_is_read(tmp_path: Path) -> None:
    folder = PartialFolder(tmp_path, {"w": 1 << 43})
    with pytest.raises(ModelError, match=r"MiB more are needed .* make room, or set node.data_dir"):
        folder.fill({"w": ((0, 1 << 43),)}, Afar(), lambda *_: None)


def test_a_watcher_that_raises_ends_the_download_and_what_came_is_kept(tmp_path: Path) -> None:
    def enough(done: int, total: int) -> None:
        if done >= 128:
            raise RuntimeFault("given up")

    folder = opened(tmp_path)
    with pytest.raises(RuntimeFault, match="given up"):
        folder.fill({"w": ((0, 1000),)}, Afar(), enough)
    assert 128 <= size(opened(tmp_path).files["w"].ranges) < 1000
