"""What sessions, drivers and stages say to each other.

A request's way::

    session ── Submit ──> driver ── OpenSequence, Step ──> first stage ── Hidden ──> … last stage
    session <── Token ─── driver <────────────────── Sampled, Prefilled ─────────────────┘
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

from runtime.actors import ActorRef, Lane, Message, Request
from runtime.errors import RuntimeFault
from runtime.spi import LayerSeconds, LayerSpan, LoadOptions, Sampling
from runtime.wire import Tensor

# -- a node's stages, asked by a driver ---------------------------------------------------------------------------


class StageOpened(Message, frozen=True, tag="stage.opened"):
    """A slice is loaded."""

    stage: ActorRef
    bytes: int
    """Weights in memory."""
    seconds: float
    alone: str | None = None
    """Why the model takes one sequence at a time, if it does; the first stage finds out."""
    trims: bool = False
    """Whether the caches of these layers can be cut to any shorter length."""


class OpenStage(Request[StageOpened], frozen=True, tag="stage.open"):
    """Fetch what is missing, load a slice, and serve it until the driver closes it or is gone."""

    model: str
    digest: str
    """The driver's checkpoint; a node whose files differ refuses."""
    span: LayerSpan
    options: LoadOptions
    driver: ActorRef
    reservation: int
    seconds: LayerSeconds | None = None
    """What the node has measured of the model's layers, if it has been asked."""


class LoadProgress(Message, frozen=True, tag="stage.progress"):
    """How far a stage has come with fetching or loading, in bytes."""

    model: str
    node: str
    step: str
    done: int
    total: int | None


# -- a stage, driven by a driver ----------------------------------------------------------------------------------


class Done(Message, frozen=True, tag="done"):
    """The request was carried out."""


class ConnectStage(Request[Done], frozen=True, tag="stage.connect"):
    """Tell a stage where its output goes; the last stage has no next and answers the driver."""

    next: ActorRef | None


class OpenSequence(Request[Done], frozen=True, tag="sequence.open"):
    """Make room for a sequence: its cache, and on the last stage its sampler."""

    sequence: int
    prompt: tuple[int, ...]
    """The last prompt tokens that penalties look back on."""
    prompt_length: int
    """Tokens of the whole prompt."""
    sampling: Sampling
    seed: int
    logprobs: int | None
    eos: tuple[int, ...]
    """Tokens that end the text."""
    min_tokens: int
    """Tokens before which the text does not end."""
    generated: tuple[int, ...] = ()
    """What another driver has sampled already, after all of the prompt."""


class CloseSequence(Message, frozen=True, tag="sequence.close"):
    """Forget a sequence. What is still on its way goes on without it."""

    sequence: int


class Row(Struct, frozen=True, array_like=True):
    """The part of a step that one sequence has.

    ``tokens`` is None on a pipeline of one stage to mean the token that the step before samples: it can be computed
    before anybody has seen that token.
    """

    sequence: int
    position: int
    """Tokens of the sequence before these."""
    tokens: tuple[int, ...] | None


class Change(Struct, frozen=True, array_like=True):
    """What a sequence's cache becomes before a step: the first ``length`` positions of that of ``source``.

    With a length of 0 it is dropped. A sequence that is its own source leaves its micro-batch and is kept, for others
    that begin alike.
    """

    sequence: int
    source: int = 0
    length: int = 0


class Step(Message, frozen=True, tag="sequence.step"):
    """Run the model over the next token of every sequence of a micro-batch, or over a chunk of one prompt, or over
    several whole prompts; or over nothing, to change caches.

    It goes through all stages, and the last one answers it with :class:`Sampled` or :class:`Prefilled`, whatever
    became of its sequences meanwhile; only :class:`StepFailed` takes the place of those.
    """

    number: int
    batch: int | None
    """The micro-batch, which holds exactly these rows from now on; None for prompts."""
    rows: tuple[Row, ...]
    changes: tuple[Change, ...] = ()
    """Of caches, in this order, before that."""


class Hidden(Message, frozen=True, tag="sequence.hidden"):
    """A step on its way: the state after the sending stage."""

    lane: ClassVar[Lane] = Lane.BULK
    number: int
    batch: int | None
    rows: tuple[tuple[int, int, int], ...]
    """Sequence, position and length of each row. Those with fewer tokens than others are padded on the left."""
    changes: tuple[Change, ...]
    state: dict[str, Tensor]
    """Arrays by name: ``hidden`` (rows, length, ...), and what else the model's layers hand on. Empty without rows."""


def sequences_of(step: Step | Hidden) -> tuple[int, ...]:
    """Return the sequences of a step."""
    return tuple(row.sequence if isinstance(row, Row) else row[0] for row in step.rows)


class Chosen(Struct, frozen=True, array_like=True):
    """The token after ``position`` others of a sequence."""

    sequence: int
    position: int
    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Sampled(Message, frozen=True, tag="sequence.sampled"):
    """The last stage chose a token for each sequence of a micro-batch that it still knows."""

    number: int
    tokens: tuple[Chosen, ...]


class Prefilled(Message, frozen=True, tag="sequence.prefilled"):
    """The last stage took in a chunk of a prompt, or several prompts."""

    number: int


class StepFailed(Message, frozen=True, tag="sequence.failed"):
    """A stage could not run a step; its sequences are lost."""

    number: int
    text: str
    code: str = RuntimeFault.code
    """Of the fault that it was."""


class StepsHeld(Message, frozen=True, tag="stage.steps_held"):
    """What a stage has in hand."""

    taken: int
    """Number of the last step that came; 0 before the first."""
    held: tuple[int, ...]
    """Numbers of the steps that came and have not been passed on."""


class AskSteps(Request[StepsHeld], frozen=True, tag="stage.ask_steps"):
    """Ask a stage which steps it has."""


# -- a driver, asked by sessions and the engine ---------------------------------------------------------------------


class Submitted(Message, frozen=True, tag="driver.submitted"):
    """The driver will generate; tokens follow."""

    sequence: int


class Submit(Request[Submitted], frozen=True, tag="driver.submit"):
    """Generate for a session."""

    session: ActorRef
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    max_tokens: int
    logprobs: int | None
    eos: tuple[int, ...]
    """Tokens that end the text; none to go on until ``max_tokens``."""
    min_tokens: int = 0
    """Tokens before which the text does not end."""
    owner: str = ""
    """Who asks: prefixes are shared among requests of one owner only."""
    generated: tuple[int, ...] = ()
    """The completion so far, which another driver has sampled. ``max_tokens`` counts these too, and the first token to
    come has the index after them."""


class Token(Message, frozen=True, tag="session.token"):
    """The next token of a session's sequence, and why it is the last one if it is."""

    index: int
    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    reason: str | None = None
    cached: int = 0
    """Tokens of the prompt that were in a cache already."""


class SequenceFailed(Message, frozen=True, tag="session.failed"):
    """A session's generation cannot go on."""

    code: str
    text: str


class Cancel(Message, frozen=True, tag="driver.cancel"):
    """A session wants no more tokens."""

    sequence: int


class Ready(Message, frozen=True, tag="driver.ready"):
    """A model is being served."""

    driver: ActorRef
    digest: str
    context: int


class AwaitReady(Request[Ready], frozen=True, tag="driver.await_ready"):
    """Answer once the model is loaded, or with why it cannot be."""

    keep_alive: float | None


class NoSubmit(Message, frozen=True, tag="driver.no_submit"):
    """One of those that were told that the model is ready does not submit anything."""


class Unload(Request[Done], frozen=True, tag="driver.unload"):
    """Stop serving once the generations in progress, and of those who were told to go ahead, are done.

    It fails with :class:`~runtime.errors.ModelInUse` if somebody asks for the model meanwhile: then it stays.
    """


class GiveWay(Message, frozen=True, tag="driver.give_way"):
    """Another driver serves the model too, and stays: finish what was begun, and end."""

    to: ActorRef


# -- a node's models, asked by engines and by other nodes -----------------------------------------------------------


class EnsureModel(Request[Ready], frozen=True, tag="models.ensure"):
    """Serve a model, wherever it is best, or say who serves it already."""

    model: str
    keep_alive: float | None


class Claimed(Message, frozen=True, tag="models.claimed"):
    """``by`` serves or is about to place the model; None leaves it to the asker."""

    by: ActorRef | None


class ClaimModel(Request[Claimed], frozen=True, tag="models.claim"):
    """A node is about to place a model; of nodes that are about to do the same the earliest claim goes ahead."""

    model: str
    node: str
    clock: int
    """A Lamport clock: higher than that of any claim that the node had heard of."""
