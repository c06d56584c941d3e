from __future__ import annotations

import pytest

from runtime.actors import ActorRef
from runtime.cluster import ServedModel, ServedModels, ServedStage, ServedState
from runtime.spi import LayerSpan


def entry(model: str, node: str, state: ServedState = ServedState.READY, active: int = 0) -> ServedModel:
    stages = (ServedStage(node, LayerSpan.whole(4), 100),)
    return ServedModel(model, "sha", ActorRef(node, f"/models/{model}", 1), stages, 2048, None, active, state)


def test_own_entries_are_found_and_each_change_is_a_new_version() -> None:
    models = ServedModels("a")
    assert models.publish(entry("m", "a"))
    assert not models.publish(entry("m", "a"))
    assert models.publish(entry("m", "a", active=1))
    assert models.version == 2
    assert models.lookup("m") == entry("m", "a", active=1)
    assert models.withdraw("m")
    assert not models.withdraw("m")
    assert models.lookup("m") is None


def test_an_entry_is_withdrawn_only_by_its_own_driver_when_one_is_named() -> None:
    models = ServedModels("a")
    models.publish(entry("m", "a"))
    assert not models.withdraw("m", ActorRef("a", "/models/m", 99))
    assert models.withdraw("m", entry("m", "a").driver)


def test_a_node_does_not_publish_for_another() -> None:
    with pytest.raises(ValueError, match="does not live on a"):
        ServedModels("a").publish(entry("m", "b"))


def test_an_older_update_never_replaces_a_newer_one() -> None:
    models = ServedModels("a")
    assert models.update("b", 1, 5, (entry("m", "b"),))
    assert not models.update("b", 1, 4, ())
    assert models.lookup("m") is not None
    assert models.update("b", 2, 0, ())
    assert models.lookup("m") is None


def test_an_update_says_nothing_of_the_drivers_of_third_nodes() -> None:
    models = ServedModels("a")
    models.update("b", 1, 1, (entry("m", "b"), entry("n", "c")))
    assert [found.model for found in models.entries()] == ["m"]
    assert not models.update("a", 1, 99, (entry("x", "a"),))


def test_the_entries_of_a_lost_node_vanish_and_return_with_it() -> None:
    models = ServedModels("a")
    models.update("b", 1, 5, (entry("m", "b"),))
    assert models.lose("b")
    assert not models.lose("b")
    assert models.entries() == ()
    assert models.update("b", 1, 5, (entry("m", "b"),))


def test_a_ready_model_is_preferred_then_a_local_one_then_the_first_by_name() -> None:
    models = ServedModels("b")
    models.update("c", 1, 1, (entry("m", "c"),))
    models.update("a", 1, 1, (entry("m", "a"),))
    found = models.lookup("m")
    assert found is not None
    assert found.driver.node == "a"
    models.publish(entry("m", "b", ServedState.LOADING))
    found = models.lookup("m")
    assert found is not None
    assert found.driver.node == "a"
    models.publish(entry("m", "b"))
    found = models.lookup("m")
    assert found is not None
    assert found.driver.node == "b"
