"""From request bodies to what the engine runs."""

from __future__ import annotations

from msgspec.structs import replace

from runtime.spi import Chat, ChatMessage, GenerationRequest, Sampling, Text, Tokens
from runtime_openai.schema import ChatBody, CompletionBody, GenerationBody

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default ``max_tokens`` of ``/v1/completions``; chats have none."""

_WHOLE_TEXT = 2**20
"""OpenAI's penalties look at the whole text so far: a window longer than any context."""
_SEEDS = 2**63


def chat_requests(body: ChatBody) -> list[GenerationRequest]:
    """Return one generation for each choice."""
    messages = tuple(
        ChatMessage(role="system" if message.role == "developer" else message.role, content=message.content or "")
        for message in body.messages
    )
    request = GenerationRequest(
        model=body.model,
        prompt=Chat(messages),
        sampling=_sampling(body),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=tuple(body.stop or ()),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
    )
    return _choices(request, body.n or 1)


def completion_requests(body: CompletionBody) -> list[GenerationRequest]:
    """Return one generation for each choice: those of the first prompt first, as OpenAI numbers them."""
    requests = []
    for prompt in body.prompt:
        request = GenerationRequest(
            model=body.model,
            prompt=Text(prompt) if isinstance(prompt, str) else Tokens(tuple(prompt)),
            sampling=_sampling(body),
            max_tokens=body.max_tokens or DEFAULT_COMPLETION_TOKENS,
            stop=tuple(body.stop or ()),
            logprobs=body.logprobs,
            ignore_eos=bool(body.ignore_eos),
            min_tokens=body.min_tokens or 0,
        )
        requests += _choices(request, body.n or 1)
    return requests


def _choices(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """Repeat a request with the seeds that follow its own, because the same seed would give the same text."""
    seed = request.sampling.seed
    if seed is None:
        return [request] * count
    return [
        replace(request, sampling=replace(request.sampling, seed=(seed + choice) % _SEEDS)) for choice in range(count)
    ]


def _sampling(body: GenerationBody) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        # -1 is how vLLM writes "off".
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        penalty_context=_WHOLE_TEXT,
        # OpenAI's two penalties are of "tokens sampled so far"; the repetition penalty is an extension.
        penalize_prompt=False,
        logit_bias=body.logit_bias or {},
        seed=body.seed,
    )
