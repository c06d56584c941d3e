"""Request bodies: one sentence for what is wrong."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from runtime.errors import InvalidRequest
from runtime.spi.body import StrictBody, read_body


class Inner(StrictBody):
    temperature: float | None = None


class Outer(StrictBody):
    name: str = Field(min_length=1)
    options: Inner | None = None
    items: list[Inner] | None = Field(None, min_length=1)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ("", "the request has no body; send a JSON object", None),
        ('{"name": "x",', "the request body is not JSON: EOF while parsing a value at line 1 column 13", None),
        ("[]", "the request body must be a JSON object, and is []", None),
        ("{}", 'the field "name" is required', "name"),
        ('{"name": ""}', '"name" is empty', "name"),
        ('{"name": 3}', '"name" should be a valid string, and is 3', "name"),
        ('{"name": "x", "nmae": 1}', 'unknown field "nmae"; did you mean "name"?', "nmae"),
        ('{"name": "x", "zzz": 1}', 'unknown field "zzz"', "zzz"),
        (
            '{"name": "x", "options": {"temprature": 1}}',
            'unknown field "options.temprature"; did you mean "options.temperature"?',
            "options.temprature",
        ),
        (
            '{"name": "x", "items": [{}, {"temp_erature": 1}]}',
            'unknown field "items[1].temp_erature"; did you mean "items[1].temperature"?',
            "items[1].temp_erature",
        ),
        ('{"name": "x", "items": []}', '"items" needs at least 1 entry, and has 0', "items"),
        (
            '{"name": "x", "options": {"temperature": true}}',
            '"options.temperature" should be a valid number, and is true',
            "options.temperature",
        ),
    ],
)
def test_a_body_that_is_wrong_is_told_what_and_where(body: str, message: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_body(Outer, body.encode())
    assert (caught.value.message, caught.value.param) == (message, param)


def test_a_whole_number_is_a_number() -> None:
    assert read_body(Outer, b'{"name": "x", "options": {"temperature": 1}}').options == Inner(temperature=1.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "options", "items", "x"]), inner),
)


@settings(deadline=None)
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises_anything_but_an_invalid_request(body: bytes) -> None:
    # Anything but an InvalidRequest fails the test.
    with contextlib.suppress(InvalidRequest):
        assert read_body(Outer, body).name


def test_what_a_client_made_up_is_not_repeated_at_length() -> None:
    for body in ({"x" * 10**6: 1}, {"name": ["x" * 10**6] * 2}, {"name": "m", "options": {"x" * 10**6: 1}}):
        with pytest.raises(InvalidRequest) as caught:
            read_body(Outer, json.dumps(body).encode())
        assert len(str(caught.value)) + len(caught.value.param or "") < 1000


def test_a_body_of_countless_mistakes_is_told_their_number_and_no_more() -> None:
    body = json.dumps({f"field{index}": 1 for index in range(1000)}).encode()
    with pytest.raises(InvalidRequest, match="1,001 unknown or wrong fields"):
        read_body(Outer, body)
