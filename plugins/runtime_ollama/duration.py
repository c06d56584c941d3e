"""Times in the forms that Ollama, written in Go, uses."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST_TEXT = 1000
"""Looking for terms in a run of digits takes the square of its length."""
NANOSECONDS = 1_000_000_000
_FOR_EVER = datetime(2318, 1, 1, tzinfo=UTC).timestamp()
"""Ollama shows "never" as a time some centuries away; clients cannot parse an absent one."""


def parse_duration(text: str) -> float:
    """Return the seconds in a duration of Go: ``5m``, ``1h30m``, ``-1s``, ``1.5h``; a bare number is seconds.

    Source: https://pkg.go.dev/time#ParseDuration.

    Raises:
        ValueError: the text is no duration.
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f'must be seconds, or a duration such as "5m" or "1h30m", and is {len(text)} characters long')
    sign, magnitude = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if re.fullmatch(r"[0-9]+(?:\.[0-9]*)?", magnitude):
        return sign * float(magnitude)
    terms = list(_TERM.finditer(magnitude))
    if not terms or "".join(term.group() for term in terms) != magnitude:
        raise ValueError(f'must be seconds, or a duration such as "5m" or "1h30m", and is {text!r}')
    return sign * sum(float(term[1]) * _UNITS[term[2]] for term in terms)


def nanoseconds(seconds: float) -> int:
    """Return whole nanoseconds."""
    return round(seconds * NANOSECONDS)


def rfc3339(time_ns: int) -> str:
    """Write nanoseconds since the epoch as RFC 3339 in UTC, without losing any."""
    seconds, fraction = divmod(time_ns, NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def expiry(expires: float | None) -> str:
    """Write when a model expires, in seconds since the epoch; None is never, which no time is later than."""
    return rfc3339(nanoseconds(_FOR_EVER if expires is None else min(expires, _FOR_EVER)))
