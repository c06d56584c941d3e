"""Keeps the processes that are measured on cores of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def apart() -> Iterator[None]:
    """Keep this process on one core, and those that it has started on the others, where the system can do that.

    Two processes that wake each other may be put on one core while another idles. They then take turns of some
    milliseconds, or not, from one round to the next: what is measured is where they happened to be.
    """
    if sys.platform != "linux" or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        yield
        return
    this = psutil.Process()
    _keep(this, cores[:1])
    for child in this.children(recursive=True):
        _keep(child, cores[1:])
    try:
        yield
    finally:
        _keep(this, cores)


def _keep(process: psutil.Process, cores: list[int]) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)
