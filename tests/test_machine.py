"""The budget that a machine's memory makes."""

from __future__ import annotations

import psutil
import pytest

from runtime.machine import Machine
from runtime.spi import MemoryPolicy


def test_the_parts_are_the_systems_and_what_is_configured() -> None:
    memory = Machine(12345, "strict", lambda: None).memory()
    system = psutil.virtual_memory()
    assert memory.total == system.total
    assert (memory.reserve, memory.policy) == (12345, "strict")
    assert 0 <= memory.reclaimable <= memory.available <= memory.total


def test_a_gpus_working_set_bounds_what_is_granted() -> None:
    assert Machine(100, "strict", lambda: 1000).memory().grantable == 900


@pytest.mark.parametrize("policy", ["strict", "swap"])
def test_swap_is_in_the_budget_where_the_policy_says_so(policy: MemoryPolicy) -> None:
    free = psutil.swap_memory().free
    assert Machine(0, policy, lambda: None).memory().swap <= (free + (1 << 20) if policy == "swap" else 0)


def test_memory_that_cannot_be_read_any_more_stays_what_it_was() -> None:
    bounds = iter([500])

    def device() -> int:
        try:
            return next(bounds)
        except StopIteration:
            raise OSError("too many open files") from None

    machine = Machine(0, "strict", device)
    assert machine.memory().limit == 500
