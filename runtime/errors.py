"""Every error the runtime raises on purpose.

RuntimeFault
├── ConfigError                 the configuration cannot be used
├── PluginError                 a plugin failed, is missing, or clashes with another
├── InvalidRequest              a client asked for something malformed or impossible
│   ├── UnsupportedParameter    a known parameter that this runtime does not implement
│   ├── ContextExceeded         the prompt does not fit the model's context
│   ├── MethodNotAllowed        the route is there, for another HTTP method
│   └── TooLarge                a body, message or frame is over its limit
├── Unauthorized                the API key is missing or wrong
├── Forbidden                   the Host or Origin is not allowed
├── NotFound                    no such route or resource
│   └── ModelNotFound           no source knows this model
├── ModelError                  the model was found and cannot be used
│   ├── CheckpointCorrupt       its files are damaged or lie about their contents
│   ├── ModelUnsupported        its architecture is not one a family plugin runs
│   └── ModelInUse              it is not unloaded, because it is wanted again
├── PlacementRefused            no plan fits the nodes there are
├── Overloaded                  a bounded queue is full; try again later
├── NodeUnhealthy               the node's compute thread does not answer
├── ActorError
│   ├── ActorStopped            the actor is gone, or draining
│   ├── MailboxFull             the actor's mailbox is full and its policy is to refuse
│   ├── AskTimeout              no reply before the deadline
│   ├── AskCycle                the actor that was asked waits, through others, for the asker
│   ├── RemoteFailure           the actor failed while it handled the request
│   └── Misuse                  a rule of the actor model is broken: a bug of the actor's author
└── WireError
    ├── ProtocolError           a peer broke the wire protocol
    ├── HandshakeRefused        version, key or name was not accepted
    └── PeerUnreachable         there is no link to that node

A message says what was asked, what was found, and what to do. ``code`` is the stable word for machines,
``http_status`` what a frontend answers with; both belong to the class, so no frontend keeps a table of its own.
"""

from __future__ import annotations

from typing import ClassVar


class RuntimeFault(Exception):
    """Base of the hierarchy. Its text is shown to the user as it is, without a traceback."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """Name of the request parameter or config key at fault, when there is one."""


class ConfigError(RuntimeFault):
    """The configuration cannot be used."""

    code = "config_error"


class PluginError(RuntimeFault):
    """A plugin failed, is missing, or clashes with another."""

    code = "plugin_error"


class InvalidRequest(RuntimeFault):
    """A client asked for something malformed or impossible."""

    code = "invalid_request"
    http_status = 400


class UnsupportedParameter(InvalidRequest):
    """A parameter that is known and not implemented; refusing it is more honest than ignoring it."""

    code = "unsupported_parameter"


class ContextExceeded(InvalidRequest):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class MethodNotAllowed(InvalidRequest):
    """The route is there, for another HTTP method."""

    code = "method_not_allowed"
    http_status = 405


class TooLarge(InvalidRequest):
    """A body, message or frame is over its limit."""

    code = "request_too_large"
    http_status = 413


class Unauthorized(RuntimeFault):
    """The API key is missing or wrong."""

    code = "invalid_api_key"
    http_status = 401


class Forbidden(RuntimeFault):
    """The Host or Origin of a request is not allowed."""

    code = "forbidden"
    http_status = 403


class NotFound(RuntimeFault):
    """No such route or resource."""

    code = "not_found"
    http_status = 404


class ModelNotFound(NotFound):
    """No source knows this model."""

    code = "model_not_found"


class ModelError(RuntimeFault):
    """The model was found and cannot be used."""

    code = "model_error"


class CheckpointCorrupt(ModelError):
    """The model's files are damaged, or lie about their contents."""

    code = "checkpoint_corrupt"


class ModelUnsupported(ModelError):
    """The model's architecture is not one that a family plugin runs."""

    code = "model_unsupported"
    http_status = 400


class ModelInUse(ModelError):
    """The model is not unloaded, because somebody asked for it again."""

    code = "model_in_use"
    http_status = 409


class PlacementRefused(RuntimeFault):
    """No plan fits the nodes there are."""

    code = "placement_refused"
    http_status = 503


class Overloaded(RuntimeFault):
    """A bounded queue is full."""

    code = "overloaded"
    http_status = 503


class NodeUnhealthy(RuntimeFault):
    """The node's compute thread is stuck; whatever it was to compute, another node has to."""

    code = "node_unhealthy"
    http_status = 503


class ActorError(RuntimeFault):
    """Base of what can go wrong between actors."""

    code = "actor_error"
    http_status = 503


class ActorStopped(ActorError):
    """The actor is gone, or draining."""

    code = "actor_stopped"


class MailboxFull(ActorError):
    """The actor's mailbox is full and its overflow policy is to refuse."""

    code = "mailbox_full"


class AskTimeout(ActorError):
    """No reply came before the deadline."""

    code = "ask_timeout"
    http_status = 504


class AskCycle(ActorError):
    """The actor that was asked waits, through others or directly, for the asker; no answer could ever come."""

    code = "ask_cycle"
    http_status = 500


class RemoteFailure(ActorError):
    """The actor failed while it handled the request."""

    code = "remote_failure"
    http_status = 500


class Misuse(ActorError):
    """A rule of the actor model is broken: a second reader of a mailbox, a reply taken twice.

    It is a bug of the actor's author. Raised while a request is handled, it is a failure and not an answer.
    """

    code = "actor_misuse"
    http_status = 500


class WireError(RuntimeFault):
    """Base of what can go wrong between nodes."""

    code = "wire_error"
    http_status = 503


class ProtocolError(WireError):
    """A peer broke the wire protocol."""

    code = "protocol_error"


class HandshakeRefused(WireError):
    """A peer's version, key or name was not accepted."""

    code = "handshake_refused"


class PeerUnreachable(WireError):
    """There is no link to that node."""

    code = "peer_unreachable"


def fault_named(code: str) -> type[RuntimeFault]:
    """Return the class with this code, so that a fault keeps its type between nodes; the base for an unknown one."""
    pending: list[type[RuntimeFault]] = [RuntimeFault]
    while pending:
        cls = pending.pop()
        if cls.code == code:
            return cls
        pending.extend(cls.__subclasses__())
    return RuntimeFault
