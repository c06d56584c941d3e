"""Who may call: decisions over header values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import Forbidden, Unauthorized
from runtime.http.access import AccessPolicy, split_host
from runtime.http.settings import HttpSettings

LOCAL = AccessPolicy(HttpSettings())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:11434", "localhost", "LOCALHOST:1", "[::1]:8080", "a.localhost."]
)
def test_a_loopback_host_is_let_in(host: str) -> None:
    LOCAL.check_host(host)


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:11434", "127.0.0.1.evil.example", "192.168.1.7", "localhost@evil.example",
     "[::1", "localhost/evil", "169.254.169.254"],
)  # fmt: skip
def test_another_host_is_refused_because_a_name_can_be_rebound(host: str | None) -> None:
    with pytest.raises(Forbidden, match=r"http\.allowed_hosts"):
        LOCAL.check_host(host)


def test_the_bound_and_the_configured_names_are_let_in() -> None:
    policy = AccessPolicy(HttpSettings(host="10.0.0.5", allowed_hosts=("llm.example",)))
    policy.check_host("10.0.0.5:80")
    policy.check_host("LLM.example:443")
    with pytest.raises(Forbidden):
        policy.check_host("10.0.0.6")


def test_a_wildcard_bind_takes_any_address_and_no_foreign_name() -> None:
    policy = AccessPolicy(HttpSettings(host="0.0.0.0"))  # noqa: S104 - the case under test
    policy.check_host("192.168.1.7:11434")
    policy.check_host("[fe80::1]")
    with pytest.raises(Forbidden):
        policy.check_host("evil.example")


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5", "https://chat.example"]
)
def test_a_mutation_from_an_allowed_origin_passes(origin: str) -> None:
    AccessPolicy(HttpSettings(allowed_origins=("https://chat.example/",))).check_origin("POST", origin, "localhost")


@pytest.mark.parametrize(
    "origin",
    ["null", "https://evil.example", "http://localhost.evil.example", "file://localhost", "http://", "http://[", "",
     "https://chat.example.evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_mutation_from_a_foreign_origin_is_refused(method: str, origin: str) -> None:
    with pytest.raises(Forbidden, match=r"http\.allowed_origins"):
        AccessPolicy(HttpSettings(allowed_origins=("https://chat.example",))).check_origin(method, origin, "localhost")


def test_reading_needs_no_origin_and_programs_send_none() -> None:
    LOCAL.check_origin("GET", "https://evil.example", "localhost")
    LOCAL.check_origin("POST", None, "localhost")


def test_a_page_that_the_node_itself_serves_may_call_it() -> None:
    LOCAL.check_origin("POST", "http://10.0.0.5:11434", "10.0.0.5:11434")


def test_the_key_is_asked_for_everywhere_but_at_the_root() -> None:
    policy = AccessPolicy(HttpSettings(api_key="sesame"))
    policy.check_key("GET", "/", None)
    policy.check_key("OPTIONS", "/v1/models", None)
    policy.check_key("GET", "/v1/models", "Bearer sesame")
    policy.check_key("GET", "/v1/models", "bearer  sesame ")
    for wrong in (None, "", "sesame", "Basic sesame", "Bearer", "Bearer sesam", "Bearer sesame2", "Bearer é"):
        with pytest.raises(Unauthorized):
            policy.check_key("GET", "/v1/models", wrong)


def test_an_address_of_ipv6_is_bound_to_without_brackets_and_called_with_them() -> None:
    policy = AccessPolicy(HttpSettings(host="2001:DB8::5", allowed_hosts=("2001:db8::0:6", "[2001:db8::7]")))
    for host in ("[2001:db8::5]:11434", "[2001:db8:0::5]", "[2001:db8::6]", "[2001:db8::7]:1"):
        policy.check_host(host)
    for host in ("2001", "[2001:db8::8]"):
        with pytest.raises(Forbidden):
            policy.check_host(host)


def test_a_key_beyond_ascii_is_compared_as_the_bytes_that_were_sent() -> None:
    policy = AccessPolicy(HttpSettings(api_key=" schlüssel-€ "))
    policy.check_key("GET", "/v1/models", "Bearer " + "schlüssel-€".encode().decode("latin-1"))
    with pytest.raises(Unauthorized):
        policy.check_key("GET", "/v1/models", "Bearer schlüssel-e")


@settings(deadline=None)
@given(st.text())
def test_no_host_header_breaks_the_parser(value: str) -> None:
    assert split_host(value) == split_host(value).lower()
