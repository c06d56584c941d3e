"""Clients of a node: the requests that they send, and what they read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import msgspec

SILENCE_SECONDS = 60.0
"""How long a stream may say nothing at all before it counts as hanging."""


class Told(msgspec.Struct, frozen=True):
    """What a client read of one stream."""

    text: str
    finished: bool
    error: str | None
    pause: float
    """The longest time between two pieces of text, in seconds."""


def bodies(model: str, count: int, tokens: int) -> list[dict[str, object]]:
    """Return requests for ``count`` streams: greedy ones, and sampled ones with a seed and penalties."""
    made: list[dict[str, object]] = []
    for number in range(count):
        body: dict[str, object] = {
            "model": model,
            "prompt": f"Once upon a time there were {number} foxes",
            "max_tokens": tokens,
            "logit_bias": {"0": -100, "2": -100},  # what would end the text
            "stream": True,
        }
        sampled = {"temperature": 0.8, "seed": number, "frequency_penalty": 0.2}
        made.append(body | (sampled if number % 2 else {"temperature": 0}))
    return made


def read_stream(url: str, body: dict[str, object], begun: Callable[[], object] = lambda: None) -> Told:
    """Read one stream to its end; ``begun`` is called at its first text."""
    pieces: list[str] = []
    pause, error, finished = 0.0, None, False
    last = None
    with (
        httpx.Client(trust_env=False, timeout=SILENCE_SECONDS) as client,
        client.stream("POST", f"{url}/v1/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    error = str(event["error"]["message"])
                    continue
                if not pieces:
                    begun()
                now = time.monotonic()
                pause, last = max(pause, 0.0 if last is None else now - last), now
                pieces.append(event["choices"][0]["text"])
            elif line and not line.startswith(":"):
                error = line  # an error response
    return Told("".join(pieces), finished, error, pause)
