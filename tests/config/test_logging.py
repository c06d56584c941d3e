"""The log is one line an event, keeps secrets, and shows tracebacks only of what nobody foresaw."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from runtime.errors import ModelNotFound
from runtime.logging import logger, set_up_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logger.remove()
    logger.configure(extra={})
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level


def test_an_event_is_one_line_with_what_is_bound_to_it() -> None:
    out = io.StringIO()
    set_up_logging("info", node="a", stream=out)
    logger.bind(model="smollm2:135m").info("loaded in {:.1f} s", 1.25)
    assert out.getvalue().endswith(" info    loaded in 1.2 s node=a model=smollm2:135m\n")
    assert out.getvalue().count("\n") == 1


def test_events_below_the_level_are_not_written() -> None:
    out = io.StringIO()
    set_up_logging("warning", stream=out)
    logger.info("quiet")
    logging.getLogger("uvicorn.error").info("quiet too")
    assert out.getvalue() == ""


def test_line_ends_in_a_message_cannot_forge_another_event() -> None:
    out = io.StringIO()
    set_up_logging(stream=out)
    logger.info("asked for {}", "x\n2030-01-01 error forged\x1b[31m")
    assert out.getvalue().count("\n") == 1
    assert r"x\n2030-01-01 error forged\x1b[31m" in out.getvalue()


def test_secrets_are_masked_in_messages_bindings_and_tracebacks() -> None:
    for json_lines in (False, True):
        out = io.StringIO()
        set_up_logging(stream=out, json_lines=json_lines, secrets=["s3cret-key"])
        try:
            raise ValueError("bad header: s3cret-key")  # noqa: TRY301 - the traceback is the subject
        except ValueError:
            logger.bind(header="s3cret-key").exception("refused s3cret-key")
        assert "s3cret-key" not in out.getvalue()
        assert out.getvalue().count("********") >= 3


def test_a_fault_of_ours_is_told_by_its_message_and_a_bug_by_its_traceback() -> None:
    out = io.StringIO()
    set_up_logging(stream=out)
    try:
        raise ModelNotFound("there is no model called x")  # noqa: TRY301 - the traceback is the subject
    except ModelNotFound:
        logger.exception("load failed")
    assert out.getvalue().endswith("load failed error=there is no model called x\n")
    try:
        raise KeyError("lost")  # noqa: TRY301 - the traceback is the subject
    except KeyError:
        logger.exception("load failed")
    assert "Traceback (most recent call last):" in out.getvalue()


def test_the_standard_librarys_logging_arrives_with_the_names_of_its_loggers() -> None:
    out = io.StringIO()
    set_up_logging(stream=out, json_lines=True, node="a")
    logging.getLogger("uvicorn.error").warning("port %s is taken {by} %s", 1, "x")
    event = json.loads(out.getvalue())
    assert event["logger"] == "uvicorn.error"
    assert event["message"] == "port 1 is taken {by} x"
    assert (event["level"], event["node"]) == ("warning", "a")


def test_libraries_are_chatty_only_at_debug() -> None:
    out = io.StringIO()
    set_up_logging("info", stream=out)
    logging.getLogger("httpx").info("GET /")
    assert out.getvalue() == ""
    set_up_logging("debug", stream=out)
    logging.getLogger("httpx").info("GET /")
    assert "GET /" in out.getvalue()


def test_passwords_in_urls_are_masked_wherever_they_appear() -> None:
    out = io.StringIO()
    set_up_logging(stream=out)
    logger.info("fetching {}", "https://user:p%40ss@hub.example/a@b?c=d@e")
    logging.getLogger("other").warning("no proxy at http://token@10.0.0.1:3128, said a@b.example")
    assert "https://********@hub.example/a@b?c=d@e\n" in out.getvalue()
    assert "http://********@10.0.0.1:3128, said a@b.example\n" in out.getvalue()
    assert "p%40ss" not in out.getvalue()
    assert "token" not in out.getvalue()


@pytest.mark.parametrize("library", ["httpx", "httpx2", "httpcore2"])
def test_requests_of_http_libraries_are_told_only_to_who_debugs(library: str) -> None:
    out = io.StringIO()
    set_up_logging("info", stream=out)
    logging.getLogger(library).info("HTTP Request: GET https://hub.example/signed?signature=abc")
    assert out.getvalue() == ""
