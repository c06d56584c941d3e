"""The configuration is layered, strict, and every problem is told with its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config.check import nearest
from runtime.config.load import Address, Config, load_settings
from runtime.config.sources import disabled_plugins, read_environment, read_overrides
from runtime.errors import ConfigError

ROLES = [
    'roles.discovery="solo"',
    'roles.placement="solo"',
    'roles.memory="solo"',
    'roles.sources=["solo"]',
    'roles.families=["solo"]',
    "roles.frontends=[]",
    "roles.telemetry=[]",
]
"""Roles filled by the plugin of the fixture, so that these tests know every section there is."""

SOLO = """
from runtime.spi import hookimpl

def never(settings, context):
    raise AssertionError("nothing is made while settings are loaded")

@hookimpl
def register_settings(register):
    from pathlib import Path
    from pydantic import BaseModel, SecretStr
    class Settings(BaseModel):
        peers: tuple[str, ...] = ()
        weights: list[float] = []
        cache: Path | None = None
        token: SecretStr | None = None
        limit: int = 3
    register(Settings)

@hookimpl
def register_discovery(register): register("solo", never)
@hookimpl
def register_placement(register): register("solo", never)
@hookimpl
def register_memory(register): register("solo", never)
@hookimpl
def register_source(register): register("solo", never)
@hookimpl
def register_family(register): register("solo", never)
"""

Load = Callable[..., Config]


@pytest.fixture
def load(site: Path, write_plugin: Any) -> Load:
    write_plugin(site, "solo", SOLO)

    def call(*overrides: str, files: list[Path] | None = None, environ: dict[str, str] | None = None) -> Config:
        return load_settings(files or [], [*ROLES, *overrides], environ or {})

    return call


@pytest.fixture
def toml(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "node.toml") -> Path:
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value).splitlines()


def test_defaults_alone_make_a_configuration(load: Load) -> None:
    config = load()
    assert (config.http.host, config.http.port) == ("127.0.0.1", 11434)
    assert config.cluster.listen is None
    assert config.models.default == "smollm2:135m"
    assert config.models.memory_reserve == 512 * 1024 * 1024
    assert config.origin("http.port") == "default"


def test_the_default_name_is_made_of_the_hosts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "Ann's MacBook (2).local")
    assert load().node.name == "Ann-s-MacBook-2"
    monkeypatch.setattr("platform.node", lambda: "")
    assert load().node.name == "node"


def test_later_layers_win_and_each_value_remembers_its_own(load: Load, toml: Callable[..., Path]) -> None:
    first = toml("[http]\nport = 1\nmax_body_bytes = '1 KiB'\n[models]\ndefault = 'm'\n[log]\njson = true\n", "1.toml")
    second = toml("[http]\nport = 2\n[models]\nsequences = 8\n", "2.toml")
    environ = {"RUNTIME_HTTP__PORT": "3", "RUNTIME_MODELS__SEQUENCES": "9", "RUNTIME_URL": "http://x", "HOME": "/"}
    config = load("http.port=4", files=[first, second], environ=environ)
    assert (config.http.port, config.origin("http.port")) == (4, "--set")
    assert (config.models.sequences, config.origin("models.sequences")) == (9, "RUNTIME_MODELS__SEQUENCES")
    assert (config.models.default, config.origin("models.default")) == ("m", str(first))
    assert config.http.max_body_bytes == 1024
    assert config.log.json_lines is True
    assert load(files=[first, second]).origin("http.port") == str(second)


def test_nothing_changes_after_loading(load: Load) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load().http.port = 1  # type: ignore[misc]  # the assignment that must fail


@pytest.mark.parametrize(
    ("item", "section", "field", "value"),
    [
        ("http.port=1", "http", "port", 1),
        ("node.name=123", "node", "name", "123"),
        ('node.name="a"', "node", "name", "a"),
        ("log.json=1", "log", "json_lines", True),
        ("models.preload=yes", "models", "preload", True),
        ("models.dequantize=auto", "models", "dequantize", "auto"),
        ("models.dequantize=false", "models", "dequantize", False),
        ("models.context=none", "models", "context", None),
        ("models.context=4096", "models", "context", 4096),
        ("models.keep_alive=-1", "models", "keep_alive", -1.0),
        ("models.memory_reserve=1GiB", "models", "memory_reserve", 1 << 30),
        ("memory.policy=swap", "memory", "policy", "swap"),
        ("cluster.listen=none", "cluster", "listen", None),
        ("cluster.listen=[::1]:7411", "cluster", "listen", "[::1]:7411"),
        ('http.allowed_hosts=["a.example"]', "http", "allowed_hosts", ("a.example",)),
    ],
)
def test_text_takes_the_type_of_its_key(load: Load, item: str, section: str, field: str, value: object) -> None:
    key, _, text = item.partition("=")
    variable = "RUNTIME_" + key.replace(".", "__").upper()
    for config in (load(item), load(environ={variable: text})):
        found = getattr(getattr(config, section), field)
        assert found == value
        assert isinstance(found, type(value))


def test_a_secret_of_digits_stays_as_it_was_written(load: Load) -> None:
    config = load(environ={"RUNTIME_HTTP__API_KEY": "000123e5"})
    assert config.http.api_key is not None
    assert config.http.api_key.get_secret_value() == "000123e5"
    assert config.secrets() == ["000123e5"]
    assert "000123e5" not in repr(config) + str(config.rows())


@pytest.mark.parametrize("key", ["2024-01-01T00:00:00Z", "1_000_000_000", "0x1234567890", "1e10 # 0000"])
def test_a_secret_that_looks_like_another_type_stays_as_it_was_written(load: Load, key: str) -> None:
    config = load(environ={"RUNTIME_HTTP__API_KEY": key, "RUNTIME_MODELS__DEFAULT": key})
    assert config.http.api_key is not None
    assert config.http.api_key.get_secret_value() == key
    assert config.models.default == key


def test_plugins_get_their_own_settings_in_the_types_they_asked_for(load: Load, toml: Callable[..., Path]) -> None:
    file = toml('[plugins.solo]\npeers = ["a:1"]\nweights = [1, 2.5]\ncache = "cache"\ntoken = "t0ken"\n')
    config = load("plugins.solo.limit=5", files=[file])
    settings: Any = config.plugin_settings["solo"]
    assert settings.peers == ("a:1",)
    assert settings.weights == [1.0, 2.5]
    assert settings.cache == file.parent / "cache"
    assert settings.limit == 5
    rows = {row.key: (row.value, row.origin) for row in config.rows()}
    assert rows["plugins.solo.token"] == ("********", str(file))
    assert rows["plugins.solo.enabled"] == (True, "default")


def test_relative_paths_start_from_the_file_that_names_them(load: Load, toml: Callable[..., Path]) -> None:
    file = toml('[models]\npath = ["models", "/abs", "~/m"]\n')
    assert load(files=[file]).models.path == (file.parent / "models", Path("/abs"), Path("~/m").expanduser())
    assert load('models.path=["m"]').models.path == (Path.cwd() / "m",)


def test_every_problem_is_told_at_once_with_its_place(load: Load, toml: Callable[..., Path]) -> None:
    file = toml(
        "[http]\nport = 'x'\nprot = 1\n[htp]\nport = 1\n[models]\npath = ['m', 3]\ndequantize = 3\n"
        "[plugins.solo]\npeer = []\n[plugins.sole]\nx = 1\n"
    )
    environ = {"RUNTIME_HTTP__API_KEYS": "s3cret", "RUNTIME_HTTP_PORT": "1", "RUNTIME_MODELS__SEQUENCES": "0"}
    assert problems(lambda: load("name=a", "http=3", files=[file], environ=environ)) == [
        "RUNTIME_HTTP_PORT: no key is read from this variable; http.port is RUNTIME_HTTP__PORT",
        f'{file}: http.port is "x"; it should be a valid integer',
        f"{file}: http.prot is not a key; the nearest is http.port",
        f"{file}: htp.port is not a key; the nearest is http.port",
        f"{file}: models.path[1] is 3; it should be a valid string",
        f"{file}: models.dequantize is 3; it should be 'auto', or it should be a valid boolean",
        f"{file}: plugins.solo.peer is not a key; the nearest is plugins.solo.peers",
        f"{file}: plugins.sole is not the section of an installed plugin; the nearest is plugins.solo",
        "RUNTIME_HTTP__API_KEYS: http.api_keys is not a key; the nearest is http.api_key",
        "RUNTIME_MODELS__SEQUENCES: models.sequences is 0; it should be greater than or equal to 1",
        "--set: name is not a key; the nearest is node.name",
        '--set: http is "3"; it is a section, so write [http]',
    ]


@pytest.mark.parametrize("item", ["http.port=70000", "http.host=", "models.keep_alive=nan", "models.default="])
def test_values_outside_their_range_are_refused(load: Load, item: str) -> None:
    (line,) = problems(lambda: load(item))
    assert line.startswith(f"--set: {item.partition('=')[0]} is ")


def test_a_wrong_secret_is_refused_without_being_shown(load: Load, toml: Callable[..., Path]) -> None:
    file = toml("[http]\napi_key = 987654\n")
    (line,) = problems(lambda: load(files=[file]))
    assert line == f"{file}: http.api_key: it should be a valid string"
    assert problems(lambda: load("http.api_key="))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 64])
def test_a_nodes_name_is_of_plain_characters(load: Load, name: str) -> None:
    (line,) = problems(lambda: load(f"node.name={name}"))
    assert line.startswith("--set: node.name")
    assert "1 to 63 letters" in line


def test_unreadable_files_are_told_with_line_and_column(load: Load, tmp_path: Path, toml: Callable[..., Path]) -> None:
    missing = tmp_path / "missing.toml"
    broken = toml("[http]\nport 1\n", "broken.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"[http]\nport = \xff\n")
    lines = problems(lambda: load(files=[missing, tmp_path, broken, binary]))
    assert lines[0] == f"{missing}: there is no such file; give --config the path of a TOML file"
    assert lines[1] == f"{tmp_path}: this is a folder; give --config the path of a TOML file"
    assert lines[2].startswith(f"{broken}: not TOML: ")
    assert lines[2].endswith("(at line 2, column 6)")
    assert lines[3] == f"{binary}: not TOML: it is not UTF-8 text (at line 2, column 8)"


@pytest.mark.parametrize("item", ["port", "=1", "http..port=1", ".=2"])
def test_an_override_has_a_form(load: Load, item: str) -> None:
    (line,) = problems(lambda: load(item))
    assert line.startswith(f"--set: {item!r} is not of the form section.key=value")


def test_variables_that_contradict_each_other_are_refused(load: Load) -> None:
    environ = {"RUNTIME_HTTP__PORT": "1", "RUNTIME_HTTP__PORT__X": "2"}
    assert problems(lambda: load(environ=environ)) == [
        "RUNTIME_HTTP__PORT__X: http.port.x contradicts RUNTIME_HTTP__PORT, which sets http.port"
    ]


def test_what_others_can_reach_demands_a_key(load: Load) -> None:
    (line,) = problems(lambda: load("http.host=0.0.0.0"))
    assert line.startswith("--set: http.host is 0.0.0.0, which other machines can reach; set http.api_key")
    (line,) = problems(lambda: load("cluster.listen=192.168.1.2:7411"))
    assert line.startswith("--set: cluster.listen is 192.168.1.2:7411, which other machines can reach")
    assert load("http.host=0.0.0.0", "http.api_key=a long key", "cluster.listen=[::]:1", "cluster.key=a long key")
    for host in ("localhost", "::1", "127.8.0.1"):
        assert load(f"http.host={host}").http.api_key is None


def test_an_advertised_address_needs_a_listener(load: Load) -> None:
    (line,) = problems(lambda: load("cluster.advertise=a.example:1"))
    assert "cluster.advertise is a.example:1, but cluster.listen is not set" in line


def test_the_numbers_of_the_failure_detector_have_to_go_together(load: Load) -> None:
    lines = problems(lambda: load("cluster.acceptable_pause=0.2", "cluster.longest_silence=0.1"))
    assert lines == [
        "--set: cluster.acceptable_pause is 0.2, less than the 0.5 s between two signs of life (cluster.heartbeat)",
        "--set: cluster.longest_silence is 0.1, so that the acceptable pause of 0.2 s (cluster.acceptable_pause) is "
        "never granted",
    ]
    (line,) = problems(lambda: load("cluster.membership=ring"))
    assert "cluster.membership" in line
    assert "'mesh', 'swim' or 'auto'" in line


def test_keys_are_read_from_files(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "cluster.key"
    file.write_text("c1uster key\n")
    file.chmod(0o600)
    config = load(f"cluster.key_file={file}")
    assert config.cluster.key is not None
    assert config.cluster.key.get_secret_value() == "c1uster key"
    assert config.origin("cluster.key") == str(file)
    assert not caplog.records
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        load(f"cluster.key_file={file}")
    assert [each.getMessage() for each in caplog.records] == [
        f"every user of this machine can read the key in {file}; chmod 600 it"
    ]


def test_key_files_that_cannot_be_used_are_told(load: Load, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    absent = tmp_path / "absent"
    assert problems(lambda: load(f"http.api_key_file={empty}", f"cluster.key_file={absent}")) == [
        f"--set: http.api_key_file is {empty}, which is empty; write the key into it",
        f"--set: cluster.key_file is {absent}, which cannot be read: No such file or directory",
    ]
    short = tmp_path / "short"
    short.write_text("short\n")
    (line,) = problems(lambda: load(f"cluster.key_file={short}"))
    assert line.endswith("holds 5 characters; use 8 or more")
    assert "8" in problems(lambda: load("cluster.key=short"))[0]
    (line,) = problems(lambda: load(f"http.api_key_file={empty}", "http.api_key=a long key"))
    assert "http.api_key_file and http.api_key are both set" in line


def test_a_role_that_nothing_fills_is_told_with_its_origin(load: Load) -> None:
    (line,) = problems(lambda: load("roles.discovery=sol"))
    assert line.startswith("--set: roles.discovery: there is no discovery called 'sol'; ")
    (line,) = problems(lambda: load('roles.sources=["solo", "solo"]'))
    assert "roles.sources" in line
    assert "it names solo more than once" in line


def test_a_failed_plugin_stops_nothing_that_does_not_select_it(load: Load, site: Path, write_plugin: Any) -> None:
    write_plugin(site, "broken", "raise RuntimeError('no disk')")
    config = load("plugins.broken.depth=3")
    assert "broken" not in config.plugin_settings
    (line,) = problems(lambda: load("plugins.broken.depth=3", "roles.discovery=broken"))
    assert "because plugin broken failed: RuntimeError: no disk" in line


def test_a_disabled_plugin_is_not_loaded_and_its_section_is_left_alone(
    load: Load, site: Path, write_plugin: Any, toml: Callable[..., Path]
) -> None:
    write_plugin(site, "broken", "raise RuntimeError('imported')")
    file = toml("[plugins.broken]\nenabled = false\ndepth = 3\n")
    rows = {row.key: row.value for row in load(files=[file]).rows()}
    assert rows["plugins.broken.enabled"] is False
    assert rows["plugins.broken.depth"] == "********", "nobody can say that it is no secret"


def test_the_secrets_of_a_plugin_that_is_not_loaded_are_not_shown(
    load: Load, site: Path, write_plugin: Any, toml: Callable[..., Path]
) -> None:
    write_plugin(site, "broken", "raise RuntimeError('no disk')")
    config = load(files=[toml('[plugins.broken]\ntoken = "sesame-open"\nnested = {keys = ["sesame-inner"]}\n')])
    assert "sesame" not in str(config.rows())
    assert {"sesame-open", "sesame-inner"} <= set(config.secrets())


def test_only_who_selects_a_plugin_must_set_what_it_needs(load: Load, site: Path, write_plugin: Any) -> None:
    source = """
    from runtime.spi import hookimpl
    @hookimpl
    def register_settings(register):
        from pydantic import BaseModel
        class Settings(BaseModel):
            url: str
        register(Settings)
    @hookimpl
    def register_telemetry(register): register("needy", print)
    """
    write_plugin(site, "needy", source)
    assert load()
    select = 'roles.telemetry=["needy"]'
    (line,) = problems(lambda: load(select))
    assert line == "--set: roles.telemetry selects 'needy', which needs plugins.needy.url to be set"
    assert load(select, "plugins.needy.url=u").plugin_settings["needy"]
    (line,) = problems(lambda: load(select, "plugins.needy.enabled=true"))
    assert line == "--set: plugins.needy.url: it must be set"


def test_the_shipped_configurations_load() -> None:
    from runtime.spi.loader import load_plugins

    configs = Path(__file__).parents[2] / "configs"
    plugins = load_plugins()
    demo = load_settings([configs / "demo.toml"], environ={}, plugins=plugins)
    bare = load_settings(environ={}, plugins=plugins)
    assert [row[:2] for row in demo.rows()] == [row[:2] for row in bare.rows()]
    a, b = (load_settings([configs / "two" / f"{name}.toml"], environ={}, plugins=plugins) for name in "ab")
    assert (a.node.name, b.node.name) == ("a", "b")
    assert a.node.data_dir == b.node.data_dir
    for one, other in ((a, b), (b, a)):
        peers: Any = one.plugin_settings["static"]
        assert peers.peers == (other.cluster.listen,)
    assert a.http.port != b.http.port


@given(st.text(min_size=1))
def test_an_address_is_read_or_refused_and_never_breaks(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(str(address)) == address


@given(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.sampled_from(["http.port", "node.name", "plugins.x.peers"]))
def test_the_nearest_key_is_a_known_one(text: str, known: str) -> None:
    assert nearest((text,), ("http.port", "node.name", "plugins.x.peers")) in {
        "",
        "http.port",
        "node.name",
        "plugins.x.peers",
    }
    assert nearest(tuple(known.split(".")), (known,)) == known


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False"])
def test_plugins_are_disabled_by_the_last_layer_that_says_so(word: str) -> None:
    off = read_environment({"RUNTIME_PLUGINS__HUB__ENABLED": word})
    on = read_overrides(["plugins.hub.enabled=true"])
    assert disabled_plugins([off]) == {"hub"}
    assert disabled_plugins([off, on]) == set()
    assert disabled_plugins([on, off]) == {"hub"}


def test_a_file_that_the_system_refuses_to_read_is_told_why(load: Load, toml: Callable[..., Path]) -> None:
    below = toml("") / "node.toml"
    assert problems(lambda: load(files=[below])) == [f"{below}: it cannot be read: Not a directory"]


def test_tls_between_nodes_is_configured_whole_or_not_at_all(load: Load) -> None:
    assert problems(lambda: load("cluster.tls_cert=c.pem")) == [
        "--set: cluster.tls_cert is set; set cluster.tls_key too",
    ]
    assert problems(lambda: load("cluster.tls_mutual=true")) == [
        "--set: cluster.tls_mutual is set, but nodes speak TLS only with cluster.tls_cert and cluster.tls_key",
        "--set: cluster.tls_mutual is set; set cluster.tls_ca to the authorities that certificates of peers are "
        "checked against",
    ]
    config = load("cluster.tls_cert=c.pem", "cluster.tls_key=k.pem", "cluster.tls_ca=ca.pem", "cluster.tls_mutual=true")
    assert config.cluster.tls_mutual
