"""The clients of ``runtime bench --load``: streams of completions, read with as little work as can be.

They run on the machine that is measured, beside as many nodes as it has cores. So they scan the answers' lines and
parse only the last ones.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from urllib.parse import urlsplit

import msgspec

LONGEST_LINE = 1 << 20


class Target(msgspec.Struct, frozen=True):
    """Who is asked, and how many streams at once."""

    url: str
    model: str
    threads: int
    streams: int


class Stream(msgspec.Struct):
    """What a client heard of one stream."""

    tokens: int = 0
    times: list[float] = []
    """When each event came."""


async def generate(target: Target, prompt: str, tokens: int, heard: Stream) -> None:
    """Run one generation, past the end of its text.

    Raises:
        RuntimeError: it was not answered with a stream to its end.
    """
    body = json.dumps(
        {
            "model": target.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
    ).encode()
    place = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=LONGEST_LINE)
    try:
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{target.url} answered {status.decode().strip()}")
        ended = False
        async for line in reader:  # of a chunked answer the lengths come as lines, too
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
            elif b'"usage"' in line and (usage := json.loads(line[6:]).get("usage")):
                heard.tokens = usage["completion_tokens"]
            else:
                heard.times.append(time.perf_counter())
        if not ended:
            raise RuntimeError(f"{target.url} broke a stream off after {len(heard.times)} events")
    finally:
        writer.close()


async def together(target: Target, prompts: Sequence[str], tokens: int) -> float:
    """Run a stream for each prompt at once; return the tokens a second of all of them, prompts included in the time."""
    streams = [Stream() for _ in prompts]
    began = time.perf_counter()
    async with asyncio.TaskGroup() as running:
        for prompt, stream in zip(prompts, streams, strict=True):
            running.create_task(generate(target, prompt, tokens, stream))
    return sum(stream.tokens for stream in streams) / (time.perf_counter() - began)


class Gaps(msgspec.Struct, frozen=True):
    """Seconds between the events of streams before a long prompt came, while it was taken in, and after it."""

    before: list[float]
    beside: list[float]
    after: list[float]
    seconds: float
    """That the long prompt took."""

    @property
    def usual(self) -> float:
        """The median gap without the prompt, at texts as long as they were half way through it.

        The longer texts are the longer gaps get, about linearly; so it is the mean of what it was before and after.
        """
        return (median(self.before) + median(self.after)) / 2


async def gaps(target: Target, prompts: Sequence[str], tokens: int, long_prompt: str, calm_seconds: float) -> Gaps:
    """Measure gaps without a long prompt for ``calm_seconds``, beside it, and for as long after it."""
    streams = [Stream() for _ in prompts]
    async with asyncio.TaskGroup() as running:
        tasks = [
            running.create_task(generate(target, prompt, tokens, stream))
            for prompt, stream in zip(prompts, streams, strict=True)
        ]
        await asyncio.sleep(calm_seconds + 1)
        began = time.perf_counter()
        await generate(target, long_prompt, 1, Stream())
        finished = time.perf_counter()
        await asyncio.sleep(calm_seconds)
        for task in tasks:
            task.cancel()
    found = Gaps([], [], [], finished - began)
    for stream in streams:
        for earlier, later in pairwise(stream.times):
            if earlier > finished:
                found.after.append(later - earlier)
            elif later > began:
                found.beside.append(later - earlier)
            elif earlier > began - calm_seconds:
                found.before.append(later - earlier)
    return found


async def turns(target: Target, first: str, second: str) -> float:
    """Return the time to the first token of a chat's second turn, over that of its first."""
    seconds = []
    for prompt in (first, second):
        heard = Stream()
        began = time.perf_counter()
        await generate(target, prompt, 1, heard)
        seconds.append(heard.times[0] - began)
    return seconds[1] / seconds[0]
