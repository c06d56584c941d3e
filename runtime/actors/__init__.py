"""Actors: state behind a mailbox, supervised, addressed alike here and on other nodes."""

from runtime.actors.actor import Actor, Context
from runtime.actors.dead_letters import DeadLetter, DeadLetters
from runtime.actors.mailbox import Mailbox, Overflow
from runtime.actors.message import Down, Lane, Message, Request, UnknownTag, message_type, tag_of
from runtime.actors.ref import CURRENT, ActorRef
from runtime.actors.reply import ReplyTo
from runtime.actors.restart import Restart, RestartBudget, Strategy, Supervision
from runtime.actors.signal import (
    Answer,
    Ask,
    Caller,
    Cancel,
    Failure,
    Gone,
    Signal,
    Tell,
    Transport,
    Unwatch,
    Watch,
)
from runtime.actors.system import ActorInfo, ActorSystem

__all__ = [
    "CURRENT",
    "Actor",
    "ActorInfo",
    "ActorRef",
    "ActorSystem",
    "Answer",
    "Ask",
    "Caller",
    "Cancel",
    "Context",
    "DeadLetter",
    "DeadLetters",
    "Down",
    "Failure",
    "Gone",
    "Lane",
    "Mailbox",
    "Message",
    "Overflow",
    "ReplyTo",
    "Request",
    "Restart",
    "RestartBudget",
    "Signal",
    "Strategy",
    "Supervision",
    "Tell",
    "Transport",
    "UnknownTag",
    "Unwatch",
    "Watch",
    "message_type",
    "tag_of",
]
