"""A node outlives the machine's limits."""

from __future__ import annotations

import errno

import psutil
import pytest

from runtime.config.load import load_settings
from runtime.node import Node
from runtime.spi.loader import load_plugins


async def test_a_node_without_a_free_file_descriptor_goes_on_with_its_last_reading_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugins = load_plugins()
    node = Node(load_settings(environ={}, plugins=plugins), plugins, lambda _: None)
    before = node.ledger.memory()

    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert node.ledger.memory().total == before.total
