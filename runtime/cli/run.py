"""``runtime run``: one answer, or a conversation."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.cli.remote import DEFAULT_URL, ApiKey, Url, connect
from runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from runtime.cli.client import NodeClient, Spent
    from runtime.spi import ChatMessage

_LEAVE = frozenset({"/bye", "/exit", "/quit"})
_INVITATION = "Ctrl-C stops an answer; Ctrl-D or /bye leaves."


def run(
    model: Annotated[str, typer.Argument(help="A name such as smollm2:135m, org/repo, or a folder.")],
    prompt: Annotated[str | None, typer.Argument(help="Without it, what is piped in, or else a conversation.")] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before all else.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tokens and timings to stderr.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Ask a model, or talk with it."""
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise InvalidRequest("the prompt is empty; write it after the model's name, or pipe it in")
    if not math.isfinite(temperature):
        raise InvalidRequest(f"--temperature is {temperature}; give a number such as 0.7")
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    with connect(url, api_key) as node:
        _load(node, model)
        conversation = Conversation(node, model, options, system=system, verbose=verbose)
        if prompt is None:
            conversation.hold()
        else:
            conversation.ask(prompt)


class Conversation:
    """The messages so far, and how answers are asked for."""

    def __init__(
        self, node: NodeClient, model: str, options: dict[str, Any], *, system: str | None, verbose: bool
    ) -> None:
        from runtime.spi import ChatMessage

        self._node = node
        self._model = model
        self._options = options
        self._verbose = verbose
        self._messages: list[ChatMessage] = [ChatMessage("system", system)] if system else []

    def hold(self) -> None:
        """Ask for prompts until the user leaves."""
        # Importing it gives input() history and line editing; not every Python has it.
        try:
            import readline  # noqa: F401
        except ImportError:
            typer.echo("(no line editing: this Python has no readline)", err=True)
        typer.echo(_INVITATION, err=True)
        while True:
            try:
                line = input(">>> ").strip()
            except EOFError:
                typer.echo()
                return
            except KeyboardInterrupt:
                typer.echo(f"\n{_INVITATION}", err=True)
                continue
            if line in _LEAVE:
                return
            if line:
                self._converse(line)

    def ask(self, prompt: str) -> str:
        """Print the answer to a prompt as it comes, and return it."""
        from runtime.spi import ChatMessage

        self._messages.append(ChatMessage("user", prompt))
        return self._answer([])

    def _converse(self, prompt: str) -> None:
        """Answer a prompt. What goes wrong ends the answer and not the conversation."""
        from runtime.errors import RuntimeFault
        from runtime.spi import ChatMessage

        pieces: list[str] = []
        self._messages.append(ChatMessage("user", prompt))
        try:
            self._answer(pieces)
        except KeyboardInterrupt:
            typer.echo(" (stopped)")
        except RuntimeFault as fault:
            typer.echo(f"\nerror: {fault}", err=True)
        if pieces:
            self._messages.append(ChatMessage("assistant", "".join(pieces)))
        else:
            # A question without an answer would make the next two one.
            self._messages.pop()

    def _answer(self, pieces: list[str]) -> str:
        from runtime.cli.client import Piece, Spent

        asked = time.perf_counter()
        first: float | None = None
        for event in self._node.chat(self._model, self._messages, self._options):
            match event:
                case Piece(text=text):
                    first = first or time.perf_counter()
                    pieces.append(text)
                    typer.echo(text, nl=False)
                    sys.stdout.flush()
                case Spent():
                    typer.echo()
                    if self._verbose:
                        _tell(event, asked, first)
        return "".join(pieces)


def _tell(spent: Spent, asked: float, first: float | None) -> None:
    now = time.perf_counter()
    text = f"{spent.prompt_tokens} prompt tokens, {spent.completion_tokens} generated ({spent.reason})"
    if first is not None:
        text += f", first after {first - asked:.2f} s"
        if spent.completion_tokens > 1 and now > first:
            text += f", then {(spent.completion_tokens - 1) / (now - first):.1f} tokens/s"
    typer.echo(text, err=True)


def _load(node: NodeClient, model: str) -> None:
    """Load the model, with a bar for what takes long. Without a terminal there is nothing to draw on."""
    if not sys.stderr.isatty():
        for _ in node.load(model):
            pass
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"loading {model}", total=None)
        step = ""
        for progress in node.load(model):
            if progress.step != step:
                # Another step counts other bytes, at another speed.
                step = progress.step
                bars.remove_task(task)
                task = bars.add_task(f"{step} {model}", total=progress.total)
            bars.update(task, completed=progress.done, total=progress.total)
