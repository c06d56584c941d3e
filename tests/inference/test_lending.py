"""Nodes that give each other the parts of a model's files."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.actors import ActorRef
from runtime.errors import InvalidRequest, ModelError, ModelNotFound, ModelUnsupported, NotFound, RuntimeFault
from runtime.inference.borrowing import Borrower
from runtime.inference.catalogue import Catalogue
from runtime.inference.lending import FILES, PART_BYTES, AskInventory, FileHeld, Lender, ReadPart
from runtime.spi import Download, ModelFiles, ModelListing, ModelSource, Progress, partial, read_checkpoint
from runtime.spi.partial import PartialFolder
from runtime.spi.ranges import size
from runtime.spi.remote import RemoteFiles
from runtime.spi.source import Holding, WholeFolder
from runtime.testing.models import tiny_llama
from tests.inference.serving import PROMPT, Folders, InferenceNode, reference, request, serving, tokens
from tests.wire.loopback import eventually


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=128, files=2)


class Afar(ModelSource):
    """A source that reads ranges, and counts the bytes; nothing is on its node at first."""

    def __init__(self, folder: Path, parts: Path) -> None:
        self.folder, self.parts = folder, parts
        self.bytes = 0
        self.waiting = 0
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def claims(self, name: str) -> bool:
        return name == "tiny"

    def local(self) -> list[ModelListing]:
        return []

    def fetch(self, name: str, progress: Progress) -> Path:
        raise NotImplementedError

    def open(self, name: str, progress: Progress) -> ModelFiles:
        sizes = {file.name: file.stat().st_size for file in self.folder.glob("*.safetensors")}
        return RemoteFiles(name, self.folder, {}, PartialFolder(self.parts, sizes), self._read, progress)

    def _read(self, file: str, start: int, stop: int) -> bytes | None:
        with self._lock:
            self.waiting += 1
        assert self.gate.wait(10)
        with self._lock:
            self.waiting -= 1
            self.bytes += stop - start
        return (self.folder / file).read_bytes()[start:stop]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


class Nothing(Folders):
    """A source that finds no model of any name."""

    def __init__(self) -> None:
        super().__init__({})

    def claims(self, name: str) -> bool:
        return True

    def fetch(self, name: str, progress: Progress) -> Path:
        raise ModelNotFound(f"there is no {name}")


class Obliging(Lender):
    """Says of every digest that it has the model."""

    def __init__(self, catalogue: Catalogue, folder: Path) -> None:
        super().__init__(catalogue)
        self._folder = folder

    async def _look(self, model: str, digest: str) -> dict[str, Holding]:
        del model, digest
        return WholeFolder(self._folder).holdings()


async def test_a_node_that_has_no_model_takes_its_slice_from_one_that_has(tiny: Path, tmp_path: Path) -> None:
    def source(name: str) -> ModelSource:
        return Folders({"tiny": tiny}) if name == "a" else Nothing()

    async with serving("a", "b", folders={}, source=source, borrowed=tmp_path) as (a, b):
        expected = reference(tiny, PROMPT, 16)
        assert await tokens(a, request()) == expected
        assert len(b.stages()) == 1
        taken = b.catalogue.opened("tiny")
        assert taken is not None
        checkpoint = taken.checkpoint
        assert {"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"} <= checkpoint.absent
        held = sum(size(held.ranges) for name, held in taken.holdings().items() if name.endswith(".safetensors"))
        present = sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if name not in checkpoint.absent)
        assert held < 1.1 * present
        assert await tokens(b, request()) == expected, "it has the tokenizer too"
        assert names(tmp_path) == ["b"], "what is here is not borrowed"


async def test_a_slice_that_a_peer_has_is_not_fetched_from_afar(tiny: Path, tmp_path: Path) -> None:
    afar = Afar(tiny, tmp_path / "parts")

    def source(name: str) -> ModelSource:
        return Folders({"tiny": tiny}) if name == "a" else afar

    async with serving("a", "b", folders={}, source=source, borrowed=tmp_path) as (a, b):
        assert await tokens(a, request()) == reference(tiny, PROMPT, 16)
        assert len(b.stages()) == 1
        files = b.catalogue.opened("tiny")
        assert files is not None
        held = sum(size(held.ranges) for name, held in files.holdings().items() if name.endswith(".safetensors"))
        assert afar.bytes < 0.2 * held, "only the headers came from there"
        assert await tokens(b, request()) == reference(tiny, PROMPT, 16)
        again = b.catalogue.opened("tiny")
        assert again is not None
        assert again.checkpoint.absent == files.checkpoint.absent


async def test_nodes_that_share_nothing_say_what_is_missing(tiny: Path) -> None:
    def source(name: str) -> ModelSource:
        return Folders({"tiny": tiny}) if name == "a" else Nothing()

    async with serving("a", "b", folders={}, source=source) as (a, _):
        with pytest.raises(ModelError, match="node b is to hold layers 2-3 of 4 of tiny and does not find it"):
            await tokens(a, request())


async def test_a_model_that_no_family_runs_is_refused_before_its_weights_are_fetched(
    tiny: Path, tmp_path: Path
) -> None:
    strange = Path(shutil.copytree(tiny, tmp_path / "strange"))
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "strange"}))
    afar = Afar(strange, tmp_path / "parts")
    async with serving("a", folders={}, source=lambda name: afar) as (a,):
        with pytest.raises(ModelUnsupported, match="no such model_type"):
            await tokens(a, request())
        assert afar.bytes < 0.1 * read_checkpoint(strange).nbytes


async def test_a_slice_that_nobody_waits_for_any_more_is_not_fetched_to_the_end(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "PIECE_BYTES", 16 * 1024)
    afar = Afar(tiny, tmp_path / "parts")
    catalogue = Catalogue({"afar": afar})
    files = await catalogue.open("tiny", silent)
    afar.gate.clear()
    begun = afar.bytes
    fetching = asyncio.create_task(catalogue.fill(files, files.checkpoint.tensors.keys(), silent))
    await eventually(lambda: afar.waiting)
    fetching.cancel()
    await asyncio.wait([fetching])
    afar.gate.set()
    await eventually(lambda: not afar.waiting)
    assert afar.bytes - begun < 0.5 * files.checkpoint.nbytes
    again = await catalogue.fetch("tiny", silent)
    assert not again.absent
    assert fetching.cancelled()
    assert afar.bytes - begun < 1.2 * again.nbytes, "what came before is kept"


async def test_bytes_that_were_damaged_between_two_processes_are_fetched_again_before_they_are_loaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "PIECE_BYTES", 16 * 1024)
    expected = reference(tiny, PROMPT, 16)
    first = Afar(tiny, tmp_path / "parts")
    async with serving("a", folders={}, source=lambda name: first) as (a,):
        assert await tokens(a, request()) == expected

    damaged = read_checkpoint(tiny).tensors["model.layers.1.mlp.down_proj.weight"]
    begin, end = damaged.range
    with (tmp_path / "parts" / damaged.file.name).open("r+b") as stream:
        # Beside the pieces with samples of the digest, which are compared when the model is opened.
        stream.seek(begin + damaged.nbytes // 8)
        stream.write(b"\xbf\x00\x80\x41" * (damaged.nbytes // 32))

    again = Afar(tiny, tmp_path / "parts")  # knows of the files what the journals say, as a new process does
    async with serving("a", folders={}, source=lambda name: again) as (a,):
        assert await tokens(a, request()) == expected
    assert 0 < again.bytes < damaged.nbytes, "only the pieces that are damaged"
    there = (tmp_path / "parts" / damaged.file.name).read_bytes()[begin:end]
    assert there == damaged.file.read_bytes()[begin:end]


@pytest.mark.parametrize("digest", ["../kept", "0" * 63, "A" * 64, "0" * 64 + "\n", ""])
async def test_a_digest_that_is_none_names_no_folder(tiny: Path, tmp_path: Path, digest: str) -> None:
    kept = Path(shutil.copytree(tiny, tmp_path / "kept"))
    before = {name: (kept / name).read_bytes() for name in names(kept)}
    async with serving("a", folders={}) as (a,):
        a.system.spawn(lambda: Obliging(a.catalogue, tiny), FILES)
        borrower = Borrower(a.system, lambda: ["a"], tmp_path / "borrowed")
        with pytest.raises(ModelError, match="a digest is 64 lowercase hexadecimal digits"):
            await borrower.open("tiny", digest, silent)
    assert names(tmp_path) == ["kept"]
    assert {name: (kept / name).read_bytes() for name in names(kept)} == before


async def test_a_peer_that_gives_less_than_it_said_is_asked_no_more(tiny: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(tiny, tmp_path / "here"))
    afar = Afar(tiny, tmp_path / "parts")

    def source(name: str) -> ModelSource:
        return Folders({"tiny": here}) if name == "a" else afar

    async with serving("a", "b", folders={}, source=source, borrowed=tmp_path) as (_, b):
        files = await b.catalogue.open("tiny", silent)
        headers = afar.bytes
        assert b.borrower is not None
        lender = await b.borrower.lender("tiny", files.checkpoint.digest)
        assert lender.nodes == ["a"]
        assert lender.has_any(files.checkpoint.tensors.values())
        shutil.rmtree(here)
        assert not (await b.catalogue.fill(files, files.checkpoint.tensors.keys(), silent, lender)).absent
        assert lender.nodes == []
        assert afar.bytes - headers > 0.9 * files.checkpoint.nbytes


@pytest.fixture
async def pair(tiny: Path, tmp_path: Path) -> AsyncIterator[tuple[InferenceNode, InferenceNode, str]]:
    """Node a has the model, node b asks, and the digest."""

    def source(name: str) -> ModelSource:
        return Folders({"tiny": tiny} if name == "a" else {})

    async with serving("a", "b", folders={}, source=source, borrowed=tmp_path) as (a, b):
        yield a, b, read_checkpoint(tiny).digest


def silent(progress: Download) -> None:
    del progress


LENDER = ActorRef("a", f"/{FILES}")


async def test_an_inventory_names_every_file_of_the_model_and_no_other(
    pair: tuple[InferenceNode, InferenceNode, str], tiny: Path
) -> None:
    _, b, digest = pair
    (tiny / "secret.key").write_text("x")
    found = (await b.system.ask(LENDER, AskInventory("tiny", digest), 5.0)).files
    expected = {name: (tiny / name).stat().st_size for name in names(tiny) if name != "secret.key"}
    assert {file.name: file.size for file in found} == expected
    assert all(file == FileHeld(file.name, file.size, ((0, file.size),)) for file in found)
    for model, other in (("tiny", "0" * 64), ("none", digest), (str(tiny), digest)):
        assert (await b.system.ask(LENDER, AskInventory(model, other), 5.0)).files == ()


@pytest.mark.parametrize(
    ("file", "start", "stop", "kind"),
    [
        ("secret.key", 0, 1, NotFound),
        ("../tiny/config.json", 0, 1, NotFound),
        ("/etc/hostname", 0, 1, NotFound),
        ("config.json", 0, 1 << 40, InvalidRequest),
        ("config.json", -5, 5, InvalidRequest),
        ("config.json", 5, 5, InvalidRequest),
        ("model-00001-of-00002.safetensors", 0, PART_BYTES + 1, InvalidRequest),
    ],
)
async def test_nothing_but_ranges_of_a_models_own_files_is_lent(
    pair: tuple[InferenceNode, InferenceNode, str], file: str, start: int, stop: int, kind: type[RuntimeFault]
) -> None:
    _, b, digest = pair
    with pytest.raises(kind):
        await b.system.ask(LENDER, ReadPart("tiny", digest, file, start, stop), 5.0)


async def test_a_range_comes_as_it_is_in_the_file(pair: tuple[InferenceNode, InferenceNode, str], tiny: Path) -> None:
    _, b, digest = pair
    part = await b.system.ask(LENDER, ReadPart("tiny", digest, "config.json", 3, 40), 5.0)
    assert bytes(part.data.data) == (tiny / "config.json").read_bytes()[3:40]
