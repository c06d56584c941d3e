"""A session ends for its reader, whatever its driver does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtime.actors import Actor, ActorRef, ActorSystem, Message, Restart
from runtime.errors import ActorStopped, Overloaded, PlacementRefused, ProtocolError, RuntimeFault
from runtime.inference.prompt import Tokenizer
from runtime.inference.protocol import Cancel, Ready, SequenceFailed, Submit, Submitted, Token
from runtime.inference.session import Lost, Outcome, Session
from runtime.inference.transcript import Transcript
from runtime.spi import Delta, Finished, FinishReason, GenerationRequest, Text, read_checkpoint
from runtime.testing.models import tiny_llama
from tests.wire.loopback import DEADLINE, eventually


class ScriptedDriver(Actor):
    """Sends a session what it is told to, and keeps what it hears."""

    def __init__(self, *script: Message, refusal: RuntimeFault | None = None) -> None:
        self.script = script
        self.refusal = refusal
        self.heard: list[Message] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def receive(self, message: Message) -> Message | None:
        self.heard.append(message)
        if not isinstance(message, Submit):
            return None
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        for each in self.script:
            self.context.tell(message.session, each)
        return Submitted(17)


class Bench:
    """A session, its driver, and what the session's reader hears."""

    def __init__(self, system: ActorSystem, tokenizer: Tokenizer) -> None:
        self.system, self.tokenizer = system, tokenizer
        self.outbox: asyncio.Queue[Outcome] = asyncio.Queue()
        self.driver = ScriptedDriver()
        self.numbers = itertools.count(1)

    def start(self, driver: ScriptedDriver, stop: tuple[str, ...] = (), max_tokens: int = 64) -> ActorRef:
        order = GenerationRequest("tiny", Text("x"), stop=stop)
        now = self.system.now()
        self.transcript = Transcript(order, (5, 6), max_tokens, 1, "", self.tokenizer, began=now, load_seconds=0.0)
        return self.next_session(driver)

    def next_session(self, driver: ScriptedDriver, context: int = 512) -> ActorRef:
        """Have a driver work on what there is."""
        self.driver = driver
        number = next(self.numbers)
        ready = Ready(self.system.spawn(lambda: driver, f"driver-{number}"), "digest", context)
        return self.system.spawn(
            lambda: Session(ready, self.transcript, self.outbox), f"session-{number}", restart=Restart.TEMPORARY
        )

    async def outcomes(self) -> list[Outcome]:
        """Read to the end."""
        found: list[Outcome] = []
        async with asyncio.timeout(DEADLINE):
            while not found or isinstance(found[-1], Delta):
                found.append(await self.outbox.get())
        return found

    def cancelled(self) -> bool:
        return Cancel(17) in self.driver.heard


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(read_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture
async def bench(tokenizer: Tokenizer) -> AsyncIterator[Bench]:
    system = ActorSystem("a")
    yield Bench(system, tokenizer)
    await system.shut_down(1.0)


def spell(tokenizer: Tokenizer, text: str, reason: str | None = None) -> list[Token]:
    ids = tokenizer.encode(Text(text))
    return [Token(index, token, None, (), reason if index == len(ids) - 1 else None) for index, token in enumerate(ids)]


async def test_text_comes_and_then_the_end(bench: Bench) -> None:
    tokens = spell(bench.tokenizer, "the quick fox", "length")
    bench.start(ScriptedDriver(*tokens), max_tokens=len(tokens))
    *deltas, finished = await bench.outcomes()
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "the quick fox"
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.LENGTH
    assert finished.usage.prompt_tokens == 2
    assert not bench.cancelled()


async def test_a_stop_text_cancels_the_rest(bench: Bench) -> None:
    bench.start(ScriptedDriver(*spell(bench.tokenizer, "the quick fox jumps")), stop=("fox",))
    *deltas, finished = await bench.outcomes()
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "the quick "
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.stop) == (FinishReason.STOP, "fox")
    await eventually(bench.cancelled)


async def test_text_held_back_for_a_stop_text_comes_at_the_end(bench: Bench) -> None:
    tokens = spell(bench.tokenizer, "the fo", "length")
    bench.start(ScriptedDriver(*tokens), stop=("fox",), max_tokens=len(tokens))
    *deltas, finished = await bench.outcomes()
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "the fo"
    assert isinstance(finished, Finished)
    assert finished.stop is None


@pytest.mark.parametrize(
    "lose", [lambda tokens: tokens[1:], lambda tokens: [*tokens[:2], *tokens[3:]], lambda tokens: [tokens[0], *tokens]]
)
async def test_a_token_that_is_lost_or_repeated_is_a_fault_and_not_another_text(
    bench: Bench, lose: Callable[[list[Token]], list[Token]]
) -> None:
    bench.start(ScriptedDriver(*lose(spell(bench.tokenizer, "the quick fox"))))
    lost = (await bench.outcomes())[-1]
    assert isinstance(lost, Lost)
    assert isinstance(lost.fault, ProtocolError)
    await eventually(bench.cancelled)


async def test_what_the_driver_says_of_a_failure_reaches_the_reader(bench: Bench) -> None:
    bench.start(ScriptedDriver(SequenceFailed(Overloaded.code, "too much")))
    (fault,) = await bench.outcomes()
    assert isinstance(fault, Overloaded)
    assert fault.message == "too much"


async def test_a_driver_that_refuses_ends_the_session(bench: Bench) -> None:
    session = bench.start(ScriptedDriver(refusal=Overloaded("full")))
    assert isinstance((await bench.outcomes())[-1], Overloaded)
    assert await bench.system.stopped(session) in ("normal", "noproc")


async def test_a_driver_that_is_gone_ends_the_session(bench: Bench) -> None:
    bench.start(ScriptedDriver(*spell(bench.tokenizer, "the")))
    await eventually(lambda: not bench.outbox.empty())
    bench.system.stop(ActorRef("a", "/driver-1"))
    lost = (await bench.outcomes())[-1]
    assert isinstance(lost, Lost)
    assert "driver of tiny ended" in lost.fault.message


async def test_another_driver_goes_on_where_the_first_was_lost(bench: Bench) -> None:
    tokens = spell(bench.tokenizer, "the quick fox", "length")
    bench.start(ScriptedDriver(*tokens[:2], SequenceFailed("peer_unreachable", "gone")), max_tokens=len(tokens))
    *first, lost = await bench.outcomes()
    assert isinstance(lost, Lost)
    bench.next_session(ScriptedDriver(*tokens[2:]))
    *rest, finished = await bench.outcomes()
    assert "".join(delta.text for delta in (*first, *rest) if isinstance(delta, Delta)) == "the quick fox"
    (submit,) = (each for each in bench.driver.heard if isinstance(each, Submit))
    assert submit.prompt == (5, 6)
    assert submit.generated == tuple(token.token for token in tokens[:2])
    assert submit.max_tokens == len(tokens)
    assert isinstance(finished, Finished)
    assert finished.usage.completion_tokens == len(tokens)


async def test_a_text_that_no_longer_fits_ends_with_a_fault_and_not_as_if_it_were_complete(bench: Bench) -> None:
    tokens = spell(bench.tokenizer, "the quick fox", "length")
    bench.start(ScriptedDriver(*tokens[:2], SequenceFailed("peer_unreachable", "gone")))
    await bench.outcomes()
    bench.next_session(ScriptedDriver(*tokens[2:]), context=2 + len(tokens))
    fault = (await bench.outcomes())[-1]
    (submit,) = (each for each in bench.driver.heard if isinstance(each, Submit))
    assert submit.max_tokens == len(tokens)
    assert isinstance(fault, PlacementRefused)


async def test_a_full_queue_refuses_who_is_new_and_not_who_is_half_served(bench: Bench) -> None:
    bench.start(ScriptedDriver(*spell(bench.tokenizer, "the"), SequenceFailed("peer_unreachable", "gone")))
    await bench.outcomes()
    bench.next_session(ScriptedDriver(refusal=Overloaded("full")))
    assert isinstance((await bench.outcomes())[-1], Lost)


async def test_a_session_that_is_stopped_while_it_submits_cancels_what_it_is_given(bench: Bench) -> None:
    driver = ScriptedDriver()
    driver.gate.clear()
    session = bench.start(driver)
    await eventually(lambda: driver.heard)
    bench.system.stop(session)
    driver.gate.set()
    await eventually(bench.cancelled)
    assert isinstance((await bench.outcomes())[-1], ActorStopped)


async def test_a_session_that_is_stopped_later_cancels_and_ends(bench: Bench) -> None:
    session = bench.start(ScriptedDriver(*spell(bench.tokenizer, "the")))
    await eventually(lambda: not bench.outbox.empty())
    bench.system.stop(session)
    await eventually(bench.cancelled)
    assert isinstance((await bench.outcomes())[-1], ActorStopped)


async def test_nothing_comes_after_the_end(bench: Bench) -> None:
    tokens = spell(bench.tokenizer, "the", "length")
    bench.start(ScriptedDriver(*tokens, SequenceFailed("overloaded", "late")), max_tokens=len(tokens))
    await bench.outcomes()
    await eventually(lambda: not bench.system._find(ActorRef("a", "/session-1")))
    with contextlib.suppress(asyncio.QueueEmpty):
        pytest.fail(f"{bench.outbox.get_nowait()} came after the end")


async def test_a_token_beyond_the_vocabulary_of_sentencepiece_is_no_text(bench: Bench, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny")
    file = folder / "tokenizer.json"
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder": {"type": "Sequence", "decoders": steps}}))
    bench.tokenizer = Tokenizer(read_checkpoint(folder))
    bench.start(ScriptedDriver(Token(0, 10**6, None, (), None), Token(1, 70, None, (), "length")), max_tokens=2)
    *_, finished = await bench.outcomes()
    assert isinstance(finished, Finished)
    assert finished.usage.completion_tokens == 2
