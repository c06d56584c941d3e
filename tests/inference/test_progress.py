"""Progress reaches whoever watches, on the event loop, and not too often; freed memory goes back."""

from __future__ import annotations

import asyncio
import threading

from runtime.inference.progress import ProgressBoard
from runtime.inference.reclaim import TRIM_EVERY, reclaim, trim, trimming
from runtime.spi import Download


def piece(done: int, step: str = "loading", model: str = "tiny", total: int = 1000) -> Download:
    return Download(model, step, done, total)


async def test_watchers_hear_of_their_own_model_until_they_stop() -> None:
    board = ProgressBoard()
    first: list[int] = []
    second: list[int] = []
    stop_first = board.watch("tiny", lambda progress: first.append(progress.done))
    stop_second = board.watch("tiny", lambda progress: second.append(progress.done))
    board.publish(piece(1))
    board.publish(piece(2, model="other"))
    stop_first()
    board.publish(piece(3))
    stop_second()
    board.publish(piece(4))
    stop_third = board.watch("tiny", lambda progress: first.append(progress.done))
    board.publish(piece(5))
    stop_third()
    assert (first, second) == ([1, 5], [1, 3])
    assert board._watchers == {}


async def test_a_watcher_may_stop_while_it_is_told() -> None:
    board = ProgressBoard()
    heard: list[int] = []

    def once(progress: Download) -> None:
        heard.append(progress.done)
        stop()

    stop = board.watch("tiny", once)
    board.watch("tiny", lambda progress: heard.append(-progress.done))
    board.publish(piece(1))
    board.publish(piece(2))
    assert heard == [1, -1, -2]


async def test_a_working_threads_reports_come_thinned_out_on_the_event_loop() -> None:
    board = ProgressBoard()
    heard: list[tuple[str, int]] = []
    threads: set[int] = set()

    def report(progress: Download) -> None:
        threads.add(threading.get_ident())
        heard.append((progress.step, progress.done))

    throttled = board.throttled(report)

    def work() -> None:
        for step in ("fetching", "loading"):
            for done in range(1001):
                throttled(piece(done, step))

    await asyncio.to_thread(work)
    await asyncio.sleep(0)
    assert threads == {threading.get_ident()}
    assert len(heard) < 100
    for step in ("fetching", "loading"):
        pieces = [done for told, done in heard if told == step]
        assert pieces[0] == 0
        assert pieces[-1] == 1000


def test_reports_after_the_event_loop_is_closed_harm_nobody() -> None:
    async def make() -> object:
        return ProgressBoard().throttled(lambda progress: None)

    throttled = asyncio.run(make())
    assert callable(throttled)
    throttled(piece(1000))


def test_memory_is_given_back_as_loading_goes_on() -> None:
    heard: list[tuple[int, int]] = []
    report = trimming(lambda done, total: heard.append((done, total)))
    pieces = [(done, 4 * TRIM_EVERY) for done in range(0, 4 * TRIM_EVERY + 1, TRIM_EVERY // 2)]
    for done, total in pieces:
        report(done, total)
    assert heard == pieces


def test_giving_memory_back_leaves_mlx_nothing_to_reuse() -> None:
    import mlx.core as mx

    mx.eval(mx.zeros((1 << 20,)) + 1)
    reclaim()
    trim()
    assert mx.get_cache_memory() == 0
