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
