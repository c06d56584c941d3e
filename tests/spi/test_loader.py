"""Plugins are loaded behind a guard; whatever is wrong with one is named, and costs no other."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelNotFound, PluginError
from runtime.spi.hookspecs import PluginContext
from runtime.spi.loader import HOOKS, ROLES, PluginRecord, Plugins, load_plugins

BUILT_IN = "mlx-actor-runtime"

TELEMETRY = """
from runtime.spi import Telemetry, hookimpl

class Counter(Telemetry):
    def __init__(self, settings, context):
        self.settings, self.context = settings, context
    def emit(self, event):
        pass

@hookimpl
def register_telemetry(register):
    register("{name}", Counter)
"""


def found(plugins: Plugins, name: str) -> PluginRecord:
    (record,) = [each for each in plugins.records if each.name == name]
    return record


def context(tmp_path: Path) -> PluginContext:
    return PluginContext(node="a", data_dir=tmp_path)


def test_every_role_has_a_hook() -> None:
    from runtime.spi import hookspecs

    declared = {name for name in dir(hookspecs) if name.startswith("register_")}
    assert declared == set(HOOKS)
    assert {f"register_{role}" for role in ROLES} < declared


def test_a_plugin_is_listed_with_its_distribution_and_hooks(site: Path, write_plugin: Any) -> None:
    write_plugin(site, "counter", TELEMETRY.format(name="counter"))
    assert found(load_plugins(), "counter") == PluginRecord(
        name="counter",
        module="plugin_counter",
        distribution="dist-counter",
        version="1.0",
        hooks=("register_telemetry",),
        status="loaded",
    )


def test_a_provider_is_made_with_the_settings_of_its_plugin(site: Path, write_plugin: Any, tmp_path: Path) -> None:
    from pydantic import BaseModel

    class Settings(BaseModel):
        pass

    write_plugin(site, "owner", TELEMETRY.format(name="counter"))
    settings = Settings()
    made = load_plugins().make("telemetry", "counter", {"owner": settings}, context(tmp_path))
    assert made.settings is settings
    assert made.context.node == "a"


def test_a_disabled_plugin_is_not_imported(site: Path, write_plugin: Any) -> None:
    write_plugin(site, "loud", "raise SystemExit('imported')")
    record = found(load_plugins(disabled={"loud"}), "loud")
    assert (record.status, record.hooks) == ("disabled", ())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = (", "SyntaxError"),
        ("x = 1", "it implements no hook"),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_fronted(register): pass",
            "hook register_fronted does not exist; the nearest is register_frontend",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_frontend(registry): pass",
            "for hook 'register_frontend'",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_frontend(): pass",
            "hook register_frontend must take the argument 'register'",
        ),
        ("def register_frontend(register): pass", "hook register_frontend is not marked"),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_frontend(register): register('Bad Name', print)",
            "hook register_frontend: 'Bad Name' is not a name",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_frontend(register): register('x', 3)",
            "hook register_frontend: the factory of 'x' is 3, which cannot be called",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\n"
            "def register_frontend(register):\n    register('x', print)\n    register('x', print)",
            "hook register_frontend: 'x' is registered twice",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_frontend(register): 1 / 0",
            "ZeroDivisionError: division by zero",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_settings(register): register(dict)",
            "hook register_settings: <class 'dict'> is not a pydantic model class",
        ),
        (
            "from runtime.spi import hookimpl\n@hookimpl\ndef register_commands(register): register('go')",
            "hook register_commands: 'go' is not a Command",
        ),
    ],
)
def test_a_broken_plugin_fails_alone_with_the_reason(
    site: Path, write_plugin: Any, source: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_plugin(site, "broken", source)
    write_plugin(site, "counter", TELEMETRY.format(name="counter"))
    with caplog.at_level(logging.WARNING):
        plugins = load_plugins()
    record = found(plugins, "broken")
    assert record.status == "failed"
    assert reason in record.reason
    assert "\n" not in record.reason
    assert [each.getMessage() for each in caplog.records if "broken" in each.getMessage()] == [
        f"plugin broken of dist-broken failed: {record.reason}"
    ]
    assert found(plugins, "counter").status == "loaded"


def test_the_reason_names_the_line_that_raised(site: Path, write_plugin: Any) -> None:
    write_plugin(site, "broken", "x = 1\nraise RuntimeError('no')")
    assert found(load_plugins(), "broken").reason == f"RuntimeError: no ({site / 'plugin_broken.py'}, line 2)"


def test_settings_may_not_claim_the_runtimes_own_key(site: Path, write_plugin: Any) -> None:
    write_plugin(
        site,
        "greedy",
        """
        from runtime.spi import hookimpl
        @hookimpl
        def register_settings(register):
            from pydantic import BaseModel
            class Settings(BaseModel):
                enabled: bool = False
            register(Settings)
        """,
    )
    assert "the key 'enabled' is the runtime's own" in found(load_plugins(), "greedy").reason


def test_one_name_from_two_distributions_refuses_both_and_names_them(site: Path, write_plugin: Any) -> None:
    write_plugin(site, "twin", TELEMETRY.format(name="one"), module="plugin_one", distribution="dist-one")
    write_plugin(site, "twin", TELEMETRY.format(name="two"), module="plugin_two", distribution="dist-two")
    plugins = load_plugins()
    records = [each for each in plugins.records if each.name == "twin"]
    assert [each.status for each in records] == ["failed", "failed"]
    assert {each.reason for each in records} == {
        "the name is offered by dist-one 1.0 and dist-two 1.0; uninstall one of them"
    }
    assert not {"one", "two"} & set(plugins.names("telemetry"))


def test_one_provider_name_from_two_plugins_refuses_both_and_names_them(
    site: Path, write_plugin: Any, tmp_path: Path
) -> None:
    write_plugin(site, "first", TELEMETRY.format(name="counter"))
    write_plugin(site, "second", TELEMETRY.format(name="counter"))
    plugins = load_plugins()
    for name in ("first", "second"):
        record = found(plugins, name)
        assert record.status == "failed"
        assert "'counter' is registered by plugins first (dist-first) and second (dist-second)" in record.reason
    with pytest.raises(PluginError, match=r"because plugin first failed: .*; plugin second failed: "):
        plugins.make("telemetry", "counter", {}, context(tmp_path))
    assert load_plugins(disabled={"second"}).names("telemetry").count("counter") == 1


def test_an_unknown_provider_is_told_with_the_nearest_and_the_known(
    site: Path, write_plugin: Any, tmp_path: Path
) -> None:
    write_plugin(site, "counter", TELEMETRY.format(name="counter"))
    with pytest.raises(PluginError) as caught:
        load_plugins().make("telemetry", "countr", {}, context(tmp_path))
    assert "there is no telemetry called 'countr'; the nearest is 'counter'; known: " in str(caught.value)


def test_an_unknown_provider_is_told_with_the_plugins_that_may_have_meant_it(
    site: Path, write_plugin: Any, tmp_path: Path
) -> None:
    write_plugin(site, "broken", "raise RuntimeError('no disk')")
    with pytest.raises(PluginError, match=r"plugins that failed: .*broken.* \(see `runtime plugins`\)"):
        load_plugins().make("telemetry", "gauge", {}, context(tmp_path))


def test_a_selected_plugin_that_failed_or_is_disabled_is_told_with_the_reason(
    site: Path, write_plugin: Any, tmp_path: Path
) -> None:
    write_plugin(site, "counter", "raise RuntimeError('no disk')")
    with pytest.raises(PluginError, match="because plugin counter failed: RuntimeError: no disk"):
        load_plugins().make("telemetry", "counter", {}, context(tmp_path))
    with pytest.raises(PluginError, match="because plugin counter is disabled"):
        load_plugins(disabled={"counter"}).make("telemetry", "counter", {}, context(tmp_path))


def test_a_factory_must_make_what_its_role_asks_for(site: Path, write_plugin: Any, tmp_path: Path) -> None:
    source = """
    from runtime.errors import ModelNotFound
    from runtime.spi import hookimpl

    def faulty(settings, context):
        raise ModelNotFound("on purpose")

    @hookimpl
    def register_telemetry(register):
        register("object", lambda settings, context: object())
        register("raising", lambda settings, context: {}["lost"])
        register("faulty", faulty)
    """
    write_plugin(site, "wrong", source)
    plugins = load_plugins()
    with pytest.raises(PluginError, match=r"plugin wrong made a object .* must be a runtime.spi.Telemetry"):
        plugins.make("telemetry", "object", {}, context(tmp_path))
    with pytest.raises(PluginError, match="plugin wrong failed to make the telemetry 'raising': KeyError: 'lost'"):
        plugins.make("telemetry", "raising", {}, context(tmp_path))
    with pytest.raises(ModelNotFound, match="on purpose"):
        plugins.make("telemetry", "faulty", {}, context(tmp_path))


def test_commands_alone_call_no_other_hook(site: Path, write_plugin: Any) -> None:
    source = """
    from runtime.spi import Command, hookimpl

    @hookimpl
    def register_commands(register):
        register(Command("go", print))

    @hookimpl
    def register_settings(register):
        raise AssertionError("called")
    """
    write_plugin(site, "both", source)
    plugins = load_plugins(commands_only=True)
    assert found(plugins, "both").status == "loaded"
    assert plugins.commands()["go"][0] == "both"
    assert found(load_plugins(), "both").status == "failed"
