"""Between nodes: what actors send each other, as bytes over two WebSockets a peer."""

from runtime.wire.address import format_address, parse_address
from runtime.wire.codec import decode, encode
from runtime.wire.dialling import DialState, DialStatus
from runtime.wire.handshake import PROTOCOL_VERSION
from runtime.wire.limits import Limits
from runtime.wire.link import LaneTraffic, PeerInfo
from runtime.wire.network import Network
from runtime.wire.tensor import Buffer, Tensor, tensor_bytes

__all__ = [
    "PROTOCOL_VERSION",
    "Buffer",
    "DialState",
    "DialStatus",
    "LaneTraffic",
    "Limits",
    "Network",
    "PeerInfo",
    "Tensor",
    "decode",
    "encode",
    "format_address",
    "parse_address",
    "tensor_bytes",
]
