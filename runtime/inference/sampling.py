"""Choosing the next token, with mlx-lm's filters and logits processors.

Randomness is keyed by (seed, position): the token at a position depends on nothing but the logits there, the seed
and the position. A sequence that is replayed elsewhere continues with the very same text.

Tokens are drawn with the Gumbel-max trick (https://arxiv.org/abs/2110.01515): each token's score has noise of its own
added, and the highest wins. Scores that are rounded otherwise, as in a batch of another size, then decide only between
two tokens that are as good as equal. Where a uniform number is looked up in the cumulative distribution, as
``mx.random.categorical`` does it, the rounding of every token before it moves the border, and texts differ about a
hundred times as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors

from runtime.inference.protocol import OpenSequence
from runtime.spi import Sampling

Scores = tuple[mx.array, mx.array | None]
"""Log-probabilities: that of the token (1,), and pairs of id and value of the likeliest (2, count), float32."""

COLDEST = 1e-5
"""Below this temperature the likeliest token is taken: dividing by less overflows, and would choose the same."""


class TokenSampler:
    """Samples one sequence. It runs on the compute thread and everything it returns is lazy."""

    def __init__(self, opened: OpenSequence, vocabulary: int) -> None:
        """``vocabulary`` is the width of the logits, which may be more than the tokens that the tokenizer knows."""
        sampling, logprobs = opened.sampling, opened.logprobs
        # What was generated elsewhere counts for penalties as if it had been here.
        prompt, generated = opened.prompt, opened.generated
        self._seed = opened.seed if sampling.seed is None else sampling.seed
        # The first token has as many before it as the prompt has.
        self._endless_until = opened.prompt_length + opened.min_tokens
        self._ends = [token for token in opened.eos if token < vocabulary] if opened.min_tokens else []
        self._logprobs = logprobs
        self._window = sampling.penalty_context
        # A top_p of 0 is the smallest nucleus there is.
        self._greedy = sampling.temperature < COLDEST or sampling.top_p == 0
        self._heat = 1.0 if self._greedy else 1 / sampling.temperature
        self._filters = [] if self._greedy else _filters(sampling, vocabulary)
        penalised = self._window > 0 and (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        bias = {token: bias for token, bias in sampling.logit_bias.items() if token < vocabulary}
        repetition = sampling.repetition_penalty if penalised and sampling.repetition_penalty != 1 else None
        over_all = make_logits_processors(
            logit_bias=bias or None, repetition_penalty=repetition, repetition_context_size=self._window
        )
        over_counted = make_logits_processors(
            presence_penalty=sampling.presence_penalty if penalised else None,
            presence_context_size=self._window,
            frequency_penalty=sampling.frequency_penalty if penalised else None,
            frequency_context_size=self._window,
        )
        before = prompt + generated if penalised else ()
        counted = before if sampling.penalize_prompt or not penalised else generated
        # A history is kept for penalties alone: nothing else evaluates it, and its graph would grow with every token.
        self._looking_back = [
            _LookingBack(over_all, None if repetition is None else _ids(before[-self._window :])),
            _LookingBack(over_counted, _ids(counted[-self._window :]) if over_counted else None),
        ]

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is taken, by the logits as they are."""
        return self._greedy and not self._ends and not any(back.processors for back in self._looking_back)

    def __call__(self, logits: mx.array, position: int) -> tuple[mx.array, Scores | None]:
        """Choose the token after ``position`` tokens.

        Args:
            logits: (1, vocabulary)
            position: number of tokens before the one chosen.

        Returns:
            The token (1,), and log-probabilities if they are wanted.
        """
        if self._ends and position < self._endless_until:
            logits = mx.put_along_axis(logits, mx.array([self._ends]), mx.array(-mx.inf, logits.dtype), axis=-1)
        for back in self._looking_back:
            for process in back.processors:
                logits = process(back.history, logits)
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        token = _likeliest(logits, scores) if self._greedy else self._draw(scores, position)
        for back in self._looking_back:
            if back.history is not None:
                back.history = mx.concatenate([back.history, token.astype(mx.int32)])[-self._window :]
        return token, self.scores(scores, token)

    def _draw(self, scores: mx.array, position: int) -> mx.array:
        """Draw a token (1,) by log-probabilities (1, vocabulary)."""
        kept = scores
        for keep in self._filters:
            kept = keep(kept)
        noise = mx.random.gumbel(kept.shape, key=mx.random.key(_key(self._seed, position)))
        return mx.argmax(kept.astype(mx.float32) * self._heat + noise, axis=-1)

    def scores(self, scores: mx.array, token: mx.array) -> Scores | None:
        """Return what is wanted of log-probabilities (1, vocabulary)."""
        if self._logprobs is None:
            return None
        chosen = mx.take_along_axis(scores, token[:, None], axis=-1)[0].astype(mx.float32)
        return chosen, _top(scores[0], self._logprobs)


def sample_rows(
    samplers: Sequence[TokenSampler], logits: mx.array, positions: Sequence[int]
) -> tuple[mx.array, list[Scores | None]]:
    """Choose a token for each row of ``logits`` (rows, vocabulary); return the tokens (rows,), and scores."""
    if not all(sampler.is_plain for sampler in samplers):
        found = [
            sampler(logits[index : index + 1], position)
            for index, (sampler, position) in enumerate(zip(samplers, positions, strict=True))
        ]
        return mx.concatenate([token for token, _ in found]), [scores for _, scores in found]
    # The same arithmetic for all rows at once, which gives each row the same bits.
    scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    tokens = _likeliest(logits, scores)
    return tokens, [
        sampler.scores(scores[index : index + 1], tokens[index : index + 1]) for index, sampler in enumerate(samplers)
    ]


def _likeliest(logits: mx.array, scores: mx.array) -> mx.array:
    """Return the likeliest token of each row, by log-probabilities as mlx-lm does.

    In float32 by what those are made of: taking one number off all moves at most neighbours that are a rounding apart,
    and log-probabilities nobody asked for are not computed then, which takes a CPU half as long as the head. In 16 bits
    they are often equal where logits are not.
    """
    return mx.argmax(logits if logits.dtype == mx.float32 else scores, axis=-1)


class _LookingBack:
    """Logits processors, and the tokens they look at, None if they look at none."""

    def __init__(
        self, processors: list[Callable[[mx.array | None, mx.array], mx.array]], history: mx.array | None
    ) -> None:
        self.processors = processors
        self.history = history


def _filters(sampling: Sampling, vocabulary: int) -> list[Callable[[mx.array], mx.array]]:
    """Return what makes unlikely tokens impossible, in mlx-lm's order; each maps log-probabilities to such."""
    filters: list[Callable[[mx.array], mx.array]] = []
    if 0 < sampling.top_p < 1:
        filters.append(lambda scores: apply_top_p(scores, sampling.top_p))
    if sampling.min_p > 0:
        filters.append(lambda scores: apply_min_p(scores, sampling.min_p))
    if 0 < sampling.top_k < vocabulary:  # mlx-lm refuses one that keeps everything
        filters.append(lambda scores: apply_top_k(scores, sampling.top_k))
    return filters


def _ids(tokens: tuple[int, ...]) -> mx.array:
    return mx.array(tokens, dtype=mx.int32)


def _top(scores: mx.array, count: int) -> mx.array | None:
    if count == 0:
        return None
    count = min(count, scores.shape[-1])
    ids = mx.argsort(-scores)[:count]
    return mx.stack([ids.astype(mx.float32), scores[ids].astype(mx.float32)])


def _key(seed: int, position: int) -> int:
    """Mix a seed and a position into 64 bits, by SplitMix64's finalizer (https://prng.di.unimi.it/splitmix64.c)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def collect_scores(scores: Scores | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Turn scores into the token's log-probability and (id, log-probability) pairs, likeliest first."""
    if scores is None:
        return None, ()
    chosen, top = scores
    if top is None:
        return float(chosen.item()), ()
    ids, values = (row.tolist() for row in top)
    return float(chosen.item()), tuple((int(token), float(value)) for token, value in zip(ids, values, strict=True))
