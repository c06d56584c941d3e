"""The file of ``runtime plan --nodes``: machines that need not be there.

    [[nodes]]
    name = "studio"
    backend = "metal"              # or "cuda", "cpu"
    available = "48GiB"
    decode = 0.0021                # seconds for a token through one layer; left out, it is not known
    batched = 0.0004               # seconds a token where 16 sequences decode at once; left out, it is decode's
    prefill = 0.0002               # seconds for a prompt token in a chunk

    [[links]]
    between = ["studio", "mini"]
    latency = 0.0004               # seconds, one way
    bandwidth = "110MB"            # a second

The first node drives the model.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from runtime.errors import ConfigError
from runtime.inference.planning import Measures
from runtime.spi import LayerSeconds, Link, NodeMemory, NodeView

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Node(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,63}$")
    available: ByteSize
    total: ByteSize | None = None
    reserve: ByteSize | None = None
    """What is kept free; by default ``models.memory_reserve``."""
    backend: Literal["metal", "cuda", "cpu"] = "cpu"
    decode: _Seconds | None = None
    batched: _Seconds | None = None
    prefill: _Seconds = 0.0


class _Link(_Strict):
    between: tuple[str, str]
    latency: _Seconds
    bandwidth: Annotated[ByteSize, Field(gt=0)]


class NodesFile(_Strict):
    """Nodes and their links."""

    nodes: tuple[_Node, ...] = Field(min_length=1)
    links: tuple[_Link, ...] = ()

    def views(self, reserve: int, families: tuple[str, ...]) -> tuple[NodeView, ...]:
        """Return the nodes as a policy sees them; each has these model families."""
        return tuple(
            NodeView(
                node.name,
                NodeMemory(
                    # Plain integers: ByteSize is pydantic's, and no JSON encoder but its own knows it.
                    total=int(node.total or node.available),
                    available=int(node.available),
                    reserve=reserve if node.reserve is None else int(node.reserve),
                ),
                node.backend,
                families,
            )
            for node in self.nodes
        )

    def measures(self, layers: int) -> Measures:
        """Return what the file says of speeds and links, for a model of so many layers."""
        return Measures(
            seconds={
                node.name: LayerSeconds(
                    decode=(node.decode,) * layers,
                    batched=(node.decode if node.batched is None else node.batched,) * layers,
                    prefill=(node.prefill,) * layers,
                )
                for node in self.nodes
                if node.decode is not None
            },
            links={pair: Link(link.latency, float(link.bandwidth)) for link in self.links for pair in _both_ways(link)},
        )


def _both_ways(link: _Link) -> tuple[tuple[str, str], tuple[str, str]]:
    one, other = link.between
    return (one, other), (other, one)


def read_nodes(file: Path) -> NodesFile:
    """Read a file of nodes.

    Raises:
        ConfigError: it cannot be read, or does not say what it must; with a line for each problem.
    """
    try:
        found = NodesFile.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problems = (f"{file}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError("\n".join(problems)) from None
    except ValueError as error:  # what is no UTF-8 or no TOML
        raise ConfigError(f"{file} is not TOML: {error}") from None
    names = [node.name for node in found.nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    strangers = sorted({name for link in found.links for name in link.between} - set(names))
    if twice or strangers:
        raise ConfigError(
            f"{file}: {', '.join(twice)} more than once"
            if twice
            else f"{file}: a link names {', '.join(strangers)}, which is not one of its nodes"
        )
    return found
