"""The verbs that talk to a node, run as real processes against a real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from runtime.cli.quantities import duration, file_size, memory, parameters
from runtime.errors import CheckpointCorrupt
from runtime.http.listener import serve
from runtime.http.settings import HttpSettings
from runtime.spi import Chat, ChatMessage
from tests.http.scripted import MODEL, ScriptedEngine, serving

# What the installed command runs; a test's parent may have had Ctrl-C ignored, which processes inherit.
RUNTIME = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from runtime.cli import main; main()",
]
ANSWER = "The capital of France is Paris."


@dataclass
class Done:
    code: int
    out: str
    err: str


async def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Done:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RUNTIME_")} | (env or {})
    with anyio.fail_after(30):
        done = await anyio.run_process([*RUNTIME, *arguments], input=stdin.encode(), env=environ, check=False)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def url(engine: ScriptedEngine) -> AsyncIterator[str]:
    async with serving(engine) as node:
        yield node.url


async def test_an_answer_is_plain_text_where_there_is_no_terminal(url: str, engine: ScriptedEngine) -> None:
    done = await run(
        "run", MODEL, "Capital?", "--system", "Brief.", "--temperature", "0", "--seed", "3", "--max-tokens", "50",
        "--url", url,
    )  # fmt: skip
    assert (done.code, done.out, done.err) == (0, ANSWER + "\n", "")
    request = engine.requests[0]
    assert request.prompt == Chat((ChatMessage("system", "Brief."), ChatMessage("user", "Capital?")))
    assert (request.sampling.temperature, request.sampling.seed, request.max_tokens) == (0, 3, 50)
    assert engine.calls == [("load", MODEL, None)]


async def test_a_prompt_can_be_piped_in_and_timings_go_to_stderr(url: str, engine: ScriptedEngine) -> None:
    done = await run("run", MODEL, "-v", stdin="Capital?", env={"RUNTIME_URL": url})
    assert done.out == ANSWER + "\n"
    assert done.err.startswith("11 prompt tokens, 7 generated (stop), first after ")
    assert engine.requests[0].prompt == Chat((ChatMessage("user", "Capital?"),))


async def test_an_empty_prompt_is_refused(url: str) -> None:
    done = await run("run", MODEL, "--url", url, stdin="\n")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: the prompt is empty; write it after the model's name, or pipe it in\n"


async def test_the_actors_are_shown_as_a_tree(url: str) -> None:
    done = await run("actors", "--url", url)
    lines = done.out.splitlines()
    assert lines[0].split() == ["ACTOR", "MAILBOX", "HANDLED", "RESTARTS", "AGE", "LAST", "ERROR"]
    assert [line.rstrip() for line in lines[1:]] == [
        "/models      0        12       0         1h     -",
        "  /1         3        450      2         1m 1s  ValueError('boom')",
        "/sessions/1  0        7        0         1s     -",
        "DEAD LETTERS",
        "late_reply    2",
    ]


async def test_the_actors_are_listed_for_programs(url: str) -> None:
    tree = json.loads((await run("actors", "--url", url, "--json")).out)
    assert tree["actors"][1]["last_error"] == "ValueError('boom')"
    assert tree["dead_letters"] == {"late_reply": 2}


async def test_an_unknown_model_is_told_in_the_nodes_words(url: str) -> None:
    done = await run("run", "smolm2", "hi", "--url", url)
    assert (done.code, done.err) == (1, f"error: there is no model 'smolm2'; did you mean '{MODEL}'?\n")


async def test_an_answer_that_breaks_off_says_why() -> None:
    async with serving(BreaksOff()) as node:
        done = await run("run", MODEL, "hi", "--url", node.url)
    assert (done.code, done.out) == (1, "The capital")
    assert done.err == "error: layer 3 is damaged\n"


class BreaksOff(ScriptedEngine):
    """Loads well, and fails two words in."""

    async def load(self, name: str, **_: object) -> None:
        self.fault, self.fault_after = CheckpointCorrupt("layer 3 is damaged"), 2


async def test_a_conversation_has_a_memory_and_ends_with_bye(url: str, engine: ScriptedEngine) -> None:
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, b"One?\n\nTwo?\n/bye\n")
        with anyio.fail_after(30):
            done = await anyio.run_process([*RUNTIME, "run", MODEL, "--url", url], stdin=terminal, check=False)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert done.returncode == 0
    assert done.stdout.decode().count(ANSWER) == 2
    assert engine.requests[1].prompt == Chat(
        (ChatMessage("user", "One?"), ChatMessage("assistant", ANSWER), ChatMessage("user", "Two?"))
    )


async def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves() -> None:
    engine = ScriptedEngine(pause_after=2)
    keyboard, terminal = pty.openpty()
    try:
        async with serving(engine) as node:
            command = [*RUNTIME, "run", MODEL, "--url", node.url]
            process = await anyio.open_process(command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            async with process:
                with anyio.fail_after(30):
                    os.write(keyboard, b"One?\n")
                    await engine.paused.wait()
                    assert process.stdout is not None
                    seen = b""
                    while b"The capital" not in seen:
                        seen += await process.stdout.receive()
                    process.send_signal(signal.SIGINT)
                    await engine.closed.wait()
                    while b"(stopped)" not in seen:
                        seen += await process.stdout.receive()
                    os.write(keyboard, b"\x04")
                    assert await process.wait() == 0
    finally:
        os.close(keyboard)
        os.close(terminal)


async def test_lists_are_tables_for_people_and_json_for_programs(url: str) -> None:
    models = await run("ls", "--url", url)
    assert models.out.splitlines()[2].split()[:4] == [MODEL, "144.8", "MB", "134.5M"]
    assert [each["name"] for each in json.loads((await run("ls", "--json", "--url", url)).out)] == [
        "acme/tiny-llama",
        MODEL,
    ]
    served = json.loads((await run("ps", "--json", "--url", url)).out)
    assert [stage["node"] for stage in served[0]["stages"]] == ["alpha", "beta"]
    table = (await run("ps", "--url", url)).out
    assert "alpha  0-14" in table
    assert "beta   15-29" in table
    nodes = json.loads((await run("nodes", "--json", "--url", url)).out)
    assert [(each["name"], each["state"]) for each in nodes] == [("alpha", "self"), ("beta", "down")]
    assert "no answer to probes" in (await run("nodes", "--url", url)).out
    status = (await run("status", "--url", url)).out
    assert "8.0 GiB of 16.0 GiB available" in status
    assert "cpu with OpenBLAS 0.3.30" in status
    assert json.loads((await run("status", "--json", "--url", url)).out)["pid"] == 4711


async def test_the_key_is_sent_and_its_lack_explained() -> None:
    async with serving(ScriptedEngine(), api_key="sesame") as node:
        without = await run("ls", "--url", node.url)
        assert without.code == 1
        assert without.err.rstrip().endswith("(here: --api-key or RUNTIME_API_KEY)")
        with_key = await run("ls", "--url", node.url, env={"RUNTIME_API_KEY": "sesame"})
        assert with_key.code == 0


async def test_a_node_without_the_openai_frontend_says_so() -> None:
    async with serving(ScriptedEngine(), frontends={}) as node:
        done = await run("run", MODEL, "hi", "--url", node.url)
    assert (done.code, done.err) == (
        1,
        f"error: the node at {node.url} does not serve the frontend 'openai', which this verb uses\n",
    )


@pytest.mark.parametrize("verb", [("ps",), ("run", MODEL, "hi")])
async def test_no_node_says_how_to_start_one(verb: tuple[str, ...]) -> None:
    done = await run(*verb, "--url", "127.0.0.1:1")
    assert done.code == 1
    assert done.err == (
        "error: no node answers at http://127.0.0.1:1: start one with `runtime start`, or name it with --url\n"
    )


@pytest.mark.parametrize(
    ("greeting", "who"), [("Ollama is running", "Ollama itself"), ("It works!", "something that is not a node")]
)
@pytest.mark.parametrize("verb", [("status",), ("run", MODEL, "hi")])
async def test_another_server_is_told_apart(verb: tuple[str, ...], greeting: str, who: str) -> None:
    async def root(request: Request) -> PlainTextResponse:
        del request
        return PlainTextResponse(greeting)

    async with serve(Starlette(routes=[Route("/", root)]), HttpSettings(port=0)) as stranger:
        done = await run(*verb, "--url", stranger.url)
    assert done.code == 1
    assert done.err.startswith(f"error: {who} answers at {stranger.url}: stop it, or start a node on another port")


@pytest.mark.parametrize("text", ["http://", "ftp://x", "http://x:port"])
async def test_what_is_no_url_is_refused(text: str) -> None:
    done = await run("status", "--url", text)
    assert (done.code, done.err.startswith(f"error: --url {text!r} is not a URL")) == (1, True)


def test_quantities_read_as_people_say_them() -> None:
    assert [memory(count) for count in (0, 1023, 1024, 1536, 2**30 - 1)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB",
    ]  # fmt: skip
    assert file_size(144_811_232) == "144.8 MB"
    assert [parameters(count) for count in (12, 134_515_008, 7_000_000_000)] == ["12", "134.5M", "7.0B"]
    assert [duration(seconds) for seconds in (-3, 0, 61, 3600, 7500, 90_061)] == [
        "0s",
        "0s",
        "1m 1s",
        "1h",
        "2h 5m",
        "1d 1h",
    ]
