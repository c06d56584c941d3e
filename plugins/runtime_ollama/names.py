"""Names of models: Ollama's always have a tag, the engine's need not."""

from __future__ import annotations

from runtime.errors import InvalidRequest, ModelNotFound
from runtime.spi import Engine

_LATEST = ":latest"


def tagged(name: str) -> str:
    """Give a name without a tag the one that Ollama shows for it."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + _LATEST


async def resolve(engine: Engine, name: str) -> str:
    """Return the engine's name for a client's: ``x:latest`` is ``x`` unless there is a model of just that name."""
    if not name.endswith(_LATEST):
        return name
    known = {card.name for card in await engine.models()}
    return name if name in known else name.removesuffix(_LATEST)


async def check_context(engine: Engine, name: str, num_ctx: int | None) -> None:
    """Refuse a context that the model does not have.

    A smaller one needs nothing: the window here is always the model's own, so at least ``num_ctx`` tokens fit.

    Raises:
        InvalidRequest: ``num_ctx`` is over the model's context.
    """
    if num_ctx is None:
        return
    try:
        card = await engine.model(name)
    except ModelNotFound:
        card = None
    if card is None or card.context == 0:
        # Not on this machine yet, or not converted: only loading it can say how long its context is, or that there
        # is none such.
        await engine.load(name)
        card = await engine.model(name)
    if card.context and num_ctx > card.context:
        raise InvalidRequest(
            f'"options.num_ctx" is {num_ctx}, and the context of {name} ends at {card.context} tokens',
            param="options.num_ctx",
        )
