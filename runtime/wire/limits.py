"""How much a node takes from its peers, and how long it waits for them."""

from __future__ import annotations

import msgspec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Limits(msgspec.Struct, frozen=True):
    """Bounds of the wire. Sizes are in bytes, times in seconds."""

    control_message: int = 4 * MIB
    """One message on the control lane."""
    bulk_message: int = GIB
    """One message on the bulk lane."""
    control_queue: int = 16 * MIB
    """Bytes that wait to be sent to one peer on the control lane."""
    bulk_queue: int = 64 * MIB
    """Bytes that wait to be sent to one peer on the bulk lane; a single larger message is taken when none waits."""
    queue_messages: int = 16_384
    """Messages that wait to be sent to one peer on one lane."""
    control_credit: int = 8 * MIB
    """Bytes that one peer may have under way to us on the control lane."""
    bulk_credit: int = 64 * MIB
    """Bytes that one peer may have under way to us, or waiting in our mailboxes, on the bulk lane."""
    credit_messages: int = 4096
    """Messages that one peer may have under way to us on one lane."""
    peers: int = 15
    """Links to other nodes; with this one, a full mesh of sixteen."""
    unauthenticated_per_host: int = 32
    """Connections from one host that have not passed the handshake."""
    handshake: float = 5.0
    """The whole of the opening of a connection, on either side."""
    retry_first: float = 0.2
    """Pause after the first failed dial; it doubles with each further one."""
    retry_most: float = 5.0
    """Longest pause between dials that fail for a passing reason."""
    retry_lasting: float = 30.0
    """Pause between dials that fail for a lasting reason: another version, key or a name clash."""
    close: float = 2.0
    """How long a connection may take to close."""
