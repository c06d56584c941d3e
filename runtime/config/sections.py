"""What the sections of the configuration hold."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, SecretStr, field_validator

from runtime.spi.cluster import MemoryPolicy
from runtime.spi.engine import LONGEST_KEEP_ALIVE
from runtime.spi.loader import Role


class Address(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``; an IPv6 host is in brackets.

        Raises:
            ValueError: the text is not of that form.
        """
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f'it should be "host:port", such as "127.0.0.1:7411"; it is "{text}"')
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is one that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _address(text: str) -> str:
    return str(Address.parse(text))


AddressText = Annotated[str, AfterValidator(_address)]
Port = Annotated[int, Field(ge=0, le=65535)]
SHORTEST_KEY = 8
"""Characters; anything shorter is soon guessed, and masking it would hide half of the log."""
Secret = Annotated[SecretStr, Field(min_length=SHORTEST_KEY)]


class Section(BaseModel):
    """Base of the sections: what is not a key is refused, and nothing changes after loading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


def _default_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node().split(".")[0]).strip("-._")
    return name[:63] or "node"


def _default_data_dir() -> Path:
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Application Support" / "runtime"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "runtime"


class NodeSection(Section):
    """Who this node is."""

    name: str = Field(default_factory=_default_name)
    data_dir: Path = Field(default_factory=_default_data_dir)
    """Files that outlast the process: converted models and plugins' caches, shared by the nodes of one user."""

    @field_validator("name")
    @classmethod
    def _well_formed(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", name):
            raise ValueError(f'it should be 1 to 63 letters, digits, ".", "_" or "-"; it is "{name}"')
        return name


class HttpSection(Section):
    """Where clients are served."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: Port = 11434
    """Ollama's, so that its clients work as they are. 0 takes a free port."""
    api_key: Secret | None = None
    """What clients must send; read from :attr:`api_key_file` where that is set."""
    api_key_file: Path | None = None
    max_body_bytes: ByteSize = ByteSize(32 * 1024 * 1024)
    allowed_hosts: tuple[str, ...] = ()
    """Further names that a request's Host header may have."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages, ``https://host``, whose scripts may use the API."""


class ClusterSection(Section):
    """How nodes reach each other."""

    listen: AddressText | None = None
    """``host:port`` to accept peers at; none keeps the node alone."""
    advertise: AddressText | None = None
    """``host:port`` that peers are told to dial, where it differs from ``listen``."""
    key: Secret | None = None
    """What every node of the cluster must know; read from :attr:`key_file` where that is set."""
    key_file: Path | None = None
    tls_cert: Path | None = None
    """PEM file with this node's certificate and those between it and the authority; set, nodes speak TLS."""
    tls_key: Path | None = None
    """PEM file with the private key of :attr:`tls_cert`."""
    tls_ca: Path | None = None
    """PEM file with the authorities that peers' certificates are checked against; none are the system's."""
    tls_mutual: bool = False
    """Whether nodes that connect here must show a certificate of :attr:`tls_ca` too."""
    membership: Literal["mesh", "swim", "auto"] = "auto"
    """Whether all peers are pinged, some of them, or as the number of nodes asks for."""
    heartbeat: float = Field(default=0.5, ge=0.05, le=60)
    """Seconds between two signs of life."""
    phi: float = Field(default=8.0, ge=1, le=100)
    """How unlikely a silence has to be for a suspicion."""
    least_deviation: float = Field(default=0.2, gt=0, le=60)
    """Seconds that the gaps between signs of life are taken to stray by at least."""
    acceptable_pause: float = Field(default=3.0, ge=0, le=600)
    """Seconds that a peer may be silent beyond its usual gap."""
    longest_silence: float = Field(default=5.5, gt=0, le=3600)
    """Seconds of silence after which a peer is suspect in any case."""
    probes: int = Field(default=3, ge=0, le=64)
    """How many others are asked to probe a suspect."""
    probe_timeout: float = Field(default=1.5, gt=0, le=600)
    """Seconds that they have before it is down."""

    @property
    def listen_address(self) -> Address | None:
        """:attr:`listen`, parsed."""
        return None if self.listen is None else Address.parse(self.listen)

    @property
    def advertise_address(self) -> Address | None:
        """:attr:`advertise`, parsed."""
        return None if self.advertise is None else Address.parse(self.advertise)


class ModelsSection(Section):
    """Which models, and how they are run."""

    default: str = Field(default="smollm2:135m", min_length=1)
    path: tuple[Path, ...] = ()
    """Folders whose sub-folders are models."""
    keep_alive: float = Field(default=300, le=LONGEST_KEEP_ALIVE, allow_inf_nan=False)
    """Seconds that an idle model stays loaded; below zero, for ever."""
    context: int | None = Field(default=None, ge=1)
    """Longest sequence in tokens; none takes the model's own limit."""
    sequences: int = Field(default=4, ge=1)
    """Generations for each model for which a KV cache of the whole context is reserved."""
    batch: int = Field(default=16, ge=1)
    """Generations at once for each model, while they are short enough to share that reservation."""
    prefix_cache: bool = True
    """Whether the caches of ended generations are kept, in reserved memory, for prompts that begin alike."""
    prefill_chunk: int = Field(default=512, ge=1)
    """Prompt tokens in one forward pass, at most."""
    step_patience: float = Field(default=5.0, ge=0.5, le=3600, allow_inf_nan=False)
    """Seconds that a step may take in any case before the node's compute thread counts as stuck, and the node as
    unhealthy. Slow steps have more: twenty times as long as steps like them took before."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    dequantize: Literal["auto"] | bool = "auto"
    memory_reserve: ByteSize = ByteSize(512 * 1024 * 1024)
    """Memory left free for everything else on the machine."""
    share: bool = True
    """Whether nodes of the cluster give each other model files."""
    preload: bool = False
    """Whether the default model is loaded at start, before anyone asks."""


class MemorySection(Section):
    """What of this machine's memory models may have."""

    policy: MemoryPolicy = "strict"
    """Grant what fits without swapping; what fits with the free swap; or whatever is asked."""


class LogSection(Section):
    """What is told to the operator."""

    level: Literal["trace", "debug", "info", "warning", "error"] = "info"
    json_lines: bool = Field(default=False, alias="json")


class RolesSection(Section):
    """Which providers are in use, by the name they registered."""

    discovery: str = "static"
    placement: str = "minmax"
    memory: str = "safetensors"
    sources: tuple[str, ...] = ("gguf", "folder", "hub")
    families: tuple[str, ...] = ("dense", "moe", "crossing")
    frontends: tuple[str, ...] = ("openai", "ollama")
    telemetry: tuple[str, ...] = ("prometheus",)

    @field_validator("sources", "families", "frontends", "telemetry")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"it names {', '.join(twice)} more than once")
        return names

    def selected(self) -> Iterator[tuple[str, Role, str]]:
        """Yield the key, the role and the name of each provider in use, in order."""
        yield "discovery", "discovery", self.discovery
        yield "placement", "placement", self.placement
        yield "memory", "memory", self.memory
        lists: tuple[tuple[str, Role, tuple[str, ...]], ...] = (
            ("sources", "source", self.sources),
            ("families", "family", self.families),
            ("frontends", "frontend", self.frontends),
            ("telemetry", "telemetry", self.telemetry),
        )
        for key, role, names in lists:
            for name in names:
                yield key, role, name


class PluginSection(BaseModel):
    """What every section ``plugins.<plugin>`` has beside the plugin's own keys, and its strictness."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)
    enabled: bool = True


class UncheckedSection(PluginSection):
    """The section of a plugin that is disabled or failed: nobody can say which keys it has."""

    model_config = ConfigDict(extra="allow")


class PluginsSection(Section):
    """One section for each plugin; :func:`load_settings` makes the class."""
