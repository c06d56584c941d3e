"""Plugins and models may raise anything; whoever asked for their work hears a fault with the reason."""

from __future__ import annotations

from loguru import logger

from runtime.errors import ModelError, RuntimeFault


def as_fault(error: Exception, work: str) -> RuntimeFault:
    """Return the fault that an exception is, or one that says what failed and why.

    What is neither a fault nor the machine's word (an ``OSError``) is a bug, and is logged with its stack. ``work``
    completes "... failed".
    """
    if isinstance(error, RuntimeFault):
        return error
    if not isinstance(error, OSError):
        logger.opt(exception=error).error("{} failed", work)
    text = " ".join(str(error).split())
    return ModelError(f"{work} failed: {type(error).__name__}{': ' + text if text else ''}")


def check_digest(model: str, found: str, expected: str, *, node: str, driver: str) -> None:
    """Refuse a model of the same name that is another one: its tokens and its numbers would mean something else.

    Args:
        found: the digest of the files on ``node``.
        expected: the digest of those on ``driver``, the node that drives the model.

    Raises:
        ModelError: they differ.
    """
    if found == expected:
        return
    if node == driver:
        raise ModelError(f"the files of {model} have changed since it was loaded; unload it, and ask again")
    raise ModelError(
        f"node {node} has other files for {model} than {driver} "
        f"(digest {found[:12]} and not {expected[:12]}); give both the same model"
    )
