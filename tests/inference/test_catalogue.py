"""Names become folders, once for all who ask, and what fails can be tried again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from anyio import to_thread

from runtime.errors import CheckpointCorrupt, ModelError, ModelNotFound
from runtime.inference.catalogue import CARDS, FETCHES, Catalogue
from runtime.spi import Download, ModelListing, ModelSource, Progress
from runtime.testing.models import tiny_llama
from runtime_folder.source import FolderSource
from runtime_gguf.source import GgufSource
from tests.wire.loopback import DEADLINE, eventually, log_lines


class Shelf(ModelSource):
    """A source that can be held up, and can fail."""

    def __init__(self, *names: str, folder: Path, source: str = "shelf", path: bool = True) -> None:
        self.names, self.folder, self.source = names, folder, source
        self.listed_path = folder if path else None
        self.fetches = 0
        self.gate = threading.Event()
        self.gate.set()
        self.failures: list[Exception] = []

    def claims(self, name: str) -> bool:
        return name in self.names

    def local(self) -> list[ModelListing]:
        if self.failures:
            raise self.failures[0]
        return [ModelListing(name, self.source, 5, 1.0, self.listed_path) for name in self.names]

    def fetch(self, name: str, progress: Progress) -> Path:
        self.fetches += 1
        progress(Download(name, "downloading", 1, 2))
        assert self.gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        progress(Download(name, "downloading", 2, 2))
        return self.folder


def silent(progress: Download) -> None:
    del progress


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def shelf(tiny: Path) -> Shelf:
    return Shelf("tiny", folder=tiny)


async def test_many_who_want_a_model_fetch_it_once_and_all_hear_of_it(shelf: Shelf) -> None:
    catalogue = Catalogue({"shelf": shelf})
    shelf.gate.clear()
    heard: list[list[int]] = [[], [], []]
    waiting = [
        asyncio.create_task(catalogue.fetch("tiny", lambda progress, into=into: into.append(progress.done)))
        for into in heard
    ]
    await eventually(lambda: shelf.fetches)
    shelf.gate.set()
    first, *others = await asyncio.gather(*waiting)
    assert all(other is first for other in others)
    assert shelf.fetches == 1
    assert all(into[-1] == 2 for into in heard)
    await catalogue.fetch("tiny", silent)
    assert shelf.fetches == 2, "what is over is asked for again: the files may be others by now"


async def test_one_who_goes_away_does_not_take_the_fetch_from_the_others(shelf: Shelf) -> None:
    catalogue = Catalogue({"shelf": shelf})
    shelf.gate.clear()
    first, second = (asyncio.create_task(catalogue.fetch("tiny", silent)) for _ in range(2))
    await eventually(lambda: shelf.fetches)
    first.cancel()
    shelf.gate.set()
    assert (await second).model_type == "llama"
    assert first.cancelled()
    assert shelf.fetches == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_a_fetch_that_everybody_left_is_forgotten_when_it_is_over(shelf: Shelf, fails: bool) -> None:
    catalogue = Catalogue({"shelf": shelf})
    shelf.gate.clear()
    shelf.failures = [CheckpointCorrupt("torn")] if fails else []
    only = asyncio.create_task(catalogue.fetch("tiny", silent))
    await eventually(lambda: shelf.fetches)
    only.cancel()
    await asyncio.wait([only])
    shelf.gate.set()
    await eventually(lambda: not catalogue._opening)
    assert (await catalogue.fetch("tiny", silent)).model_type == "llama"
    assert shelf.fetches == 2


async def test_a_fetch_that_failed_can_be_tried_again_at_once(shelf: Shelf) -> None:
    catalogue = Catalogue({"shelf": shelf})
    shelf.failures = [CheckpointCorrupt("torn")]
    with pytest.raises(CheckpointCorrupt, match="torn"):
        await catalogue.fetch("tiny", silent)
    assert (await catalogue.fetch("tiny", silent)).model_type == "llama"


@pytest.mark.parametrize("error", [OSError("the disk is full"), ZeroDivisionError("the disk is full")])
async def test_whatever_a_source_raises_is_told_with_its_name(shelf: Shelf, error: Exception) -> None:
    shelf.failures = [error]
    with pytest.raises(ModelError, match=r"fetching tiny from source shelf failed: .* the disk is full"):
        await Catalogue({"shelf": shelf}).fetch("tiny", silent)


async def test_an_unknown_name_is_answered_with_the_nearest_ones(shelf: Shelf) -> None:
    catalogue = Catalogue({"shelf": shelf})
    for ask in (catalogue.fetch("tinny", silent), catalogue.card("tinny")):
        with pytest.raises(ModelNotFound, match="did you mean tiny") as refused:
            await ask
        assert refused.value.param == "model"
    with pytest.raises(ModelNotFound, match="this node has tiny"):
        await catalogue.fetch("completely else", silent)


@pytest.mark.parametrize("error", [OSError("no permission"), KeyError("a bug")])
async def test_a_source_that_fails_is_left_out_and_logged(tiny: Path, error: Exception) -> None:
    bad, good = Shelf("bad", folder=tiny), Shelf("good", folder=tiny)
    bad.failures = [error]
    async with log_lines("WARNING") as lines:
        listings = await Catalogue({"bad": bad, "good": good}).listings()
    assert [listing.name for listing in listings] == ["good"]
    assert any("source bad cannot list its models" in line for line in lines)


async def test_of_two_sources_with_one_name_the_first_wins(tiny: Path) -> None:
    first, second = (Shelf("tiny", name, folder=tiny, source=name) for name in ("first", "second"))
    catalogue = Catalogue({"first": first, "second": second})
    assert {listing.name: listing.source for listing in await catalogue.listings()} == {
        "first": "first",
        "second": "second",
        "tiny": "first",
    }
    await catalogue.fetch("tiny", silent)
    assert (first.fetches, second.fetches) == (1, 0)


async def test_models_are_described_and_damaged_ones_left_out(tiny: Path, tmp_path: Path) -> None:
    torn = tiny_llama(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"12")
    catalogue = Catalogue({"good": Shelf("tiny", folder=tiny), "bad": Shelf("torn", folder=torn)})
    async with log_lines("WARNING") as lines:
        cards = await catalogue.cards()
    assert [card.name for card in cards] == ["tiny"]
    assert any("torn is on this machine and cannot be used" in line for line in lines)
    assert await catalogue.card("tiny") is cards[0]
    with pytest.raises(CheckpointCorrupt):
        await catalogue.card("torn")


async def test_a_model_that_is_not_converted_is_described_without_fetching_it(tiny: Path, tmp_path: Path) -> None:
    shelf = Shelf("tiny", str(tmp_path / "x.gguf"), folder=tiny, path=False)
    (tmp_path / "x.gguf").write_bytes(b"1234567")
    catalogue = Catalogue({"shelf": shelf})
    card = await catalogue.card("tiny")
    assert (card.name, card.bytes, card.architecture, card.context) == ("tiny", 5, "", 0)
    assert len(await catalogue.cards()) == 2
    shelf.names = ()
    shelf.claims = lambda name: True  # type: ignore[method-assign]
    assert (await catalogue.card(str(tmp_path / "x.gguf"))).bytes == 7
    assert shelf.fetches == 0


async def test_a_damaged_model_is_read_once(tiny: Path, tmp_path: Path) -> None:
    torn = tiny_llama(tmp_path / "torn")
    good = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(b"12")
    catalogue = Catalogue({"bad": Shelf("torn", folder=torn)})
    assert await catalogue.cards() == []
    (torn / "model.safetensors").write_bytes(good)
    assert await catalogue.cards() == [], "its listing says that nothing changed"


async def test_the_spellings_of_a_path_that_are_remembered_are_bounded(tiny: Path) -> None:
    shelf = Shelf(folder=tiny)
    shelf.claims = lambda name: True  # type: ignore[method-assign]
    catalogue = Catalogue({"shelf": shelf})
    for extra in range(CARDS + 3):
        await catalogue.card(f"{tiny.parent}{'/' * (1 + extra)}{tiny.name}")
    assert len(catalogue._cards) == CARDS


@pytest.mark.parametrize("name", ["x" * 256 + ".gguf", "/" + "y" * 300, "z/" * 3000, "a\0b", "~nosuchuser/x.gguf"])
async def test_a_name_that_no_file_can_have_is_not_found_and_not_an_error_of_ours(name: str, tmp_path: Path) -> None:
    catalogue = Catalogue({"folder": FolderSource((tmp_path,)), "gguf": GgufSource(tmp_path)})
    async with log_lines("WARNING") as lines:
        for ask in (catalogue.fetch(name, silent), catalogue.card(name)):
            with pytest.raises(ModelNotFound) as refused:
                await ask
            assert len(refused.value.message) < 300
    assert not lines


async def test_slow_fetches_of_one_source_hold_up_nothing_else(tiny: Path) -> None:
    slow = Shelf(*(f"slow{number}" for number in range(60)), folder=tiny)
    quick = Shelf("quick", folder=tiny)
    slow.gate.clear()
    catalogue = Catalogue({"slow": slow, "quick": quick})
    waiting = [asyncio.create_task(catalogue.fetch(name, silent)) for name in slow.names]
    try:
        await eventually(lambda: slow.fetches == FETCHES)
        async with asyncio.timeout(DEADLINE):
            assert (await catalogue.fetch("quick", silent)).model_type == "llama"
            assert (await catalogue.card("quick")).layers == 4
            assert await to_thread.run_sync(lambda: True)
        assert slow.fetches == FETCHES
    finally:
        slow.gate.set()
    await asyncio.gather(*waiting)
