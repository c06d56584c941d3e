"""From request bodies to what the engine runs."""

from __future__ import annotations

from runtime.spi import Chat, ChatMessage, GenerationRequest, Sampling, Text
from runtime_ollama.schema import ChatBody, GenerateBody, GenerationBody, Options

DEFAULT_TEMPERATURE = 0.8
DEFAULT_TOP_K = 40
DEFAULT_TOP_P = 0.9
DEFAULT_REPEAT_PENALTY = 1.1
DEFAULT_REPEAT_LAST_N = 64

_WHOLE_TEXT = 2**20
"""``repeat_last_n`` of -1 looks at the whole context."""


def chat_request(model: str, body: ChatBody) -> GenerationRequest:
    """Return the generation that a chat asks for."""
    messages = (ChatMessage(role=message.role, content=message.content or "") for message in body.messages or [])
    return _request(model, body, Chat(tuple(messages)))


def generate_request(model: str, body: GenerateBody) -> GenerationRequest:
    """Return the generation of a prompt: in the chat template as the user's message, unless it is raw."""
    prompt = body.prompt or ""
    if body.raw:
        return _request(model, body, Text(prompt))
    system = (ChatMessage(role="system", content=body.system),) if body.system else ()
    return _request(model, body, Chat((*system, ChatMessage(role="user", content=prompt))))


def _request(model: str, body: GenerationBody, prompt: Chat | Text) -> GenerationRequest:
    options = body.options or Options()
    return GenerationRequest(
        model=model,
        prompt=prompt,
        sampling=_sampling(options),
        # -1 goes on until the model stops and -2 until the context is full; both have no limit of their own here,
        # where a full context ends an answer. llama.cpp reads 0 as -1.
        max_tokens=options.num_predict if options.num_predict is not None and options.num_predict > 0 else None,
        stop=tuple(stop for stop in options.stop or () if stop),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        keep_alive=body.keep_alive,
        truncate=body.truncate is not False,
    )


def _sampling(options: Options) -> Sampling:
    window = DEFAULT_REPEAT_LAST_N if options.repeat_last_n is None else options.repeat_last_n
    penalised = window != 0
    repeat = DEFAULT_REPEAT_PENALTY if options.repeat_penalty is None else options.repeat_penalty
    return Sampling(
        temperature=DEFAULT_TEMPERATURE if options.temperature is None else options.temperature,
        top_k=DEFAULT_TOP_K if options.top_k is None else max(options.top_k, 0),
        top_p=DEFAULT_TOP_P if options.top_p is None else options.top_p,
        min_p=options.min_p or 0.0,
        repetition_penalty=repeat if penalised else 1.0,
        presence_penalty=(options.presence_penalty or 0.0) if penalised else 0.0,
        frequency_penalty=(options.frequency_penalty or 0.0) if penalised else 0.0,
        penalty_context=window if window > 0 else _WHOLE_TEXT,
        # A negative seed asks for a random one.
        seed=options.seed if options.seed is not None and options.seed >= 0 else None,
    )
