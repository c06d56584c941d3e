"""The plugin interface: everything a plugin may import, and nothing else.

A plugin is a module named by an entry point of the group ``runtime.plugins``. It implements any of the hooks of
:mod:`runtime.spi.hookspecs` with :data:`hookimpl`; each hook receives a ``register`` callback and calls it with a
name and a factory. The providers those factories make implement the classes exported here.

This package imports neither MLX nor a web framework, so that listing plugins stays fast.
"""

from runtime.spi.checkpoint import Checkpoint, TensorInfo, read_checkpoint
from runtime.spi.cluster import MemoryPolicy, NodeMemory, NodeView
from runtime.spi.commands import Command
from runtime.spi.discovery import Discovery
from runtime.spi.engine import (
    Chat,
    ChatMessage,
    Delta,
    Engine,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    LoadedModel,
    LoadedStage,
    ModelCard,
    Sampling,
    ScoredToken,
    Started,
    Text,
    Timings,
    Tokens,
    TokenText,
    Usage,
    Waiting,
)
from runtime.spi.family import LoadOptions, ModelFamily
from runtime.spi.frontend import Frontend
from runtime.spi.hookspecs import ENTRY_POINT_GROUP, PROJECT, hookimpl
from runtime.spi.layer_calls import LayerCalls
from runtime.spi.memory import MemoryEstimate, MemoryEstimator, Part, Workload
from runtime.spi.placement import (
    BATCHED,
    LayerSeconds,
    Link,
    PlacementPolicy,
    PlacementRequest,
    Plan,
    StagePlan,
)
from runtime.spi.source import Download, Holding, ModelFiles, ModelListing, ModelSource, Progress, RangeReader
from runtime.spi.span import LayerSpan
from runtime.spi.telemetry import (
    HealthChanged,
    ModelLoaded,
    ModelUnloaded,
    PeerChanged,
    RequestFinished,
    Telemetry,
    TelemetryEvent,
)

__all__ = [
    "BATCHED",
    "ENTRY_POINT_GROUP",
    "PROJECT",
    "Chat",
    "ChatMessage",
    "Checkpoint",
    "Command",
    "Delta",
    "Discovery",
    "Download",
    "Engine",
    "FinishReason",
    "Finished",
    "Frontend",
    "GenerationEvent",
    "GenerationRequest",
    "HealthChanged",
    "Holding",
    "LayerCalls",
    "LayerSeconds",
    "LayerSpan",
    "Link",
    "LoadOptions",
    "LoadedModel",
    "LoadedStage",
    "MemoryEstimate",
    "MemoryEstimator",
    "MemoryPolicy",
    "ModelCard",
    "ModelFamily",
    "ModelFiles",
    "ModelListing",
    "ModelLoaded",
    "ModelSource",
    "ModelUnloaded",
    "NodeMemory",
    "NodeView",
    "Part",
    "PeerChanged",
    "PlacementPolicy",
    "PlacementRequest",
    "Plan",
    "Progress",
    "RangeReader",
    "RequestFinished",
    "Sampling",
    "ScoredToken",
    "StagePlan",
    "Started",
    "Telemetry",
    "TelemetryEvent",
    "TensorInfo",
    "Text",
    "Timings",
    "TokenText",
    "Tokens",
    "Usage",
    "Waiting",
    "Workload",
    "hookimpl",
    "read_checkpoint",
]
