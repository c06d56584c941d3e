"""The log: one line an event, on standard error, for whoever runs the node.

Everything goes through loguru; what libraries write to the standard library's ``logging`` is led there too. A fault
that the runtime raised on purpose is told by its message alone; only what nobody foresaw brings its traceback.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Collection
from typing import TYPE_CHECKING, TextIO

from loguru import logger

from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["logger", "set_up_logging"]

_CHATTY = (
    "httpx", "httpcore", "httpx2", "httpcore2", "websockets", "huggingface_hub", "filelock", "urllib3", "asyncio",
    "fsspec",
)  # fmt: skip
"""Libraries whose ``info`` is our ``debug``."""

MASK = "********"
_USERINFO = re.compile(r"(?<=://)[^\s/?#@\"'<>]+@")
"""What is before the host of a URL: names and passwords (RFC 3986, 3.2.1)."""


def set_up_logging(
    level: str = "info",
    *,
    json_lines: bool = False,
    node: str | None = None,
    secrets: Collection[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send the log to ``stream`` (standard error), replacing what was set up before.

    Args:
        level: the lowest level that is written: trace, debug, info, warning or error.
        json_lines: write a JSON object a line.
        node: the node's name, bound to every event.
        secrets: texts that are masked wherever they would appear.
        stream: where to write.
    """
    hidden = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def write(message: Message) -> None:
        text = render_json(message.record) if json_lines else render_text(message.record)
        for secret in hidden:
            text = text.replace(secret, MASK)
        text = _USERINFO.sub(f"{MASK}@", text)
        out = stream or sys.stderr
        out.write(text + "\n")
        out.flush()

    logger.remove()
    # Our own rendering shows no variables' values, which loguru's `diagnose` would, secrets among them.
    logger.add(write, level=level.upper(), format="{message}", backtrace=False, diagnose=False)
    logger.configure(extra={} if node is None else {"node": node})
    _lead_standard_logging(level)


def render_text(record: Record) -> str:
    """Write an event as ``time level message key=value ...``; a traceback follows for what nobody foresaw."""
    bound = "".join(f" {key}={_one_line(str(value))}" for key, value in record["extra"].items())
    line = f"{record['time']:%Y-%m-%d %H:%M:%S.%f}"[:-3]
    line += f" {record['level'].name.lower():<7} {_one_line(record['message'])}{bound}"
    error = _error(record)
    if isinstance(error, RuntimeFault):
        return f"{line} error={_one_line(str(error))}"
    return line if error is None else line + "\n" + _traceback(error)


def render_json(record: Record) -> str:
    """Write an event as one JSON object; what is bound to it are keys of their own."""
    event: dict[str, object] = {
        "time": record["time"].isoformat(),
        "level": record["level"].name.lower(),
        "logger": record["name"],
        "message": record["message"],
    }
    event.update((key, value) for key, value in record["extra"].items() if key not in event)
    error = _error(record)
    if error is not None:
        event["error"] = str(error) or type(error).__name__
        if not isinstance(error, RuntimeFault):
            event["traceback"] = _traceback(error)
    return json.dumps(event, ensure_ascii=False, default=str)


def _error(record: Record) -> BaseException | None:
    return None if record["exception"] is None else record["exception"].value


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _one_line(text: str) -> str:
    """Escape line ends and control characters: what a client sent must not forge a line of the log."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _ToLoguru(logging.Handler):
    """Leads records of the standard library's logging into loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        error = record.exc_info[1] if record.exc_info else None
        name = record.name

        def rename(event: Record) -> None:
            event["name"] = name

        logger.patch(rename).opt(exception=error).log(level, "{}", record.getMessage())


def _lead_standard_logging(level: str) -> None:
    lowest = logger.level(level.upper()).no
    logging.basicConfig(handlers=[_ToLoguru()], level=lowest, force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(lowest if lowest <= logging.DEBUG else logging.WARNING)
    # uvicorn brings handlers of its own when it is imported by others first; everything goes one way here.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.captureWarnings(capture=True)
