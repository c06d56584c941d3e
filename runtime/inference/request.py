"""What every generation request must satisfy, whichever frontend it came through."""

from __future__ import annotations

from runtime.errors import ContextExceeded, InvalidRequest
from runtime.spi import GenerationRequest, Sampling

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_TOKEN = 2**31
"""Far beyond any vocabulary."""


def check_request(request: GenerationRequest) -> None:
    """Refuse settings that have no meaning.

    Raises:
        InvalidRequest: naming the parameter, what it was and what it may be.
    """
    check_sampling(request.sampling)
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {request.max_tokens}, and must be at least 1", param="max_tokens")
    if request.min_tokens < 0 or (request.max_tokens is not None and request.min_tokens > request.max_tokens):
        raise InvalidRequest(
            f"min_tokens is {request.min_tokens}, and must be at least 0 and at most max_tokens", param="min_tokens"
        )
    if len(request.stop) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in request.stop):
        raise InvalidRequest(
            f"stop takes up to {MAX_STOPS} texts of up to {MAX_STOP_LENGTH} characters each", param="stop"
        )
    if request.logprobs is not None and not 0 <= request.logprobs <= 100:
        raise InvalidRequest(f"logprobs asks for {request.logprobs} tokens, and must be 0 to 100", param="logprobs")


def check_sampling(sampling: Sampling) -> None:
    """Refuse sampling settings that have no meaning; see :func:`check_request`."""
    bounds: list[tuple[str, float, float, float]] = [
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("top_k", sampling.top_k, 0, 2**31),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ("penalty_context", sampling.penalty_context, 0, 2**31),
        # What one 64-bit integer on the wire can hold.
        ("seed", sampling.seed or 0, -(2**63), 2**64 - 1),
    ]
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise InvalidRequest(f"{name} is {_shown(value)}, and must be between {low:g} and {high:g}", param=name)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < MAX_TOKEN:
            raise InvalidRequest(f"logit_bias names token {_shown(token)}, which no model has", param="logit_bias")
        if not -100 <= bias <= 100:
            raise InvalidRequest(
                f"logit_bias of token {token} is {_shown(bias)}, and must be -100 to 100", param="logit_bias"
            )


def fit_context(
    tokens: tuple[int, ...], max_tokens: int | None, context: int, *, truncate: bool
) -> tuple[tuple[int, ...], int]:
    """Return the prompt and the completion length that fit the context.

    With ``truncate`` a prompt that is too long loses its oldest tokens, down to half of the context, for room to
    answer in; otherwise it is refused. A completion is shortened silently: it ends with ``length``.

    Raises:
        ContextExceeded: with the prompt's length and the context.
    """
    if len(tokens) >= context:
        if not truncate or context < 2:
            raise ContextExceeded(
                f"the prompt has {len(tokens)} tokens and this model is served with a context of {context}, answer "
                "included; shorten the prompt, or raise models.context if the model and the memory allow it",
                param="messages",
            )
        tokens = tokens[-(context // 2) :]
    room = context - len(tokens)
    return tokens, room if max_tokens is None else min(max_tokens, room)


def _shown(value: float) -> str:
    # JSON has integers of any length, and Python refuses to write the longest ones.
    return f"{value:g}" if not isinstance(value, int) or abs(value) < 10**300 else "beyond all bounds"
