"""Between nodes: what actors send each other, as bytes over two connections a peer."""

from runtime.wire.address import format_address, parse_address
from runtime.wire.codec import decode, encode
from runtime.wire.connection import Connection, ConnectionEnded, Listener, Medium
from runtime.wire.dialling import DialState, DialStatus
from runtime.wire.handshake import PROTOCOL_VERSION
from runtime.wire.limits import Limits
from runtime.wire.link import PeerInfo
from runtime.wire.memory import Weather, Wires
from runtime.wire.network import Network
from runtime.wire.session import LaneTraffic
from runtime.wire.tensor import Buffer, Tensor, tensor_bytes
from runtime.wire.websocket import WebSockets

__all__ = [
    "PROTOCOL_VERSION",
    "Buffer",
    "Connection",
    "ConnectionEnded",
    "DialState",
    "DialStatus",
    "LaneTraffic",
    "Limits",
    "Listener",
    "Medium",
    "Network",
    "PeerInfo",
    "Tensor",
    "Weather",
    "WebSockets",
    "Wires",
    "decode",
    "encode",
    "format_address",
    "parse_address",
    "tensor_bytes",
]
