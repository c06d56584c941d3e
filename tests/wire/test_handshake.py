from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.actors import Lane
from runtime.errors import ProtocolError
from runtime.wire.handshake import MAX_MESSAGE, Acceptor, Dialler, Identity, Refusal, Refused, Versions

SESSION = bytes(range(16))
A = Identity("a", 1, b"aaaaaaaa", "10.0.0.1:70")
B = Identity("b", 2, b"bbbbbbbb", "10.0.0.2:70")


def sides(dialler_key: bytes = b"key", acceptor_key: bytes = b"key") -> tuple[Dialler, Acceptor]:
    return Dialler(A, dialler_key, Lane.BULK, SESSION), Acceptor(B, acceptor_key)


def test_two_nodes_with_one_key_learn_who_the_other_is() -> None:
    dialler, acceptor = sides()
    proof = dialler.prove(acceptor.challenge(dialler.hello()))
    assert acceptor.verify(proof) == A
    assert (acceptor.lane, acceptor.session) == (Lane.BULK, SESSION)
    assert dialler.conclude(acceptor.verdict()) == B


def test_a_dialler_with_another_key_is_told_so_and_learns_nothing_of_the_acceptor() -> None:
    dialler, acceptor = sides(dialler_key=b"wrong")
    challenge = acceptor.challenge(dialler.hello())
    with pytest.raises(Refused, match="the cluster key does not match") as refused:
        acceptor.verify(dialler.prove(challenge))
    assert refused.value.reason is Refusal.KEY
    away = acceptor.turn_away(refused.value.reason)
    with pytest.raises(Refused, match=r"set the same cluster\.key on every node"):
        dialler.conclude(away)
    assert B.instance not in challenge + away
    assert B.address.encode() not in challenge + away


def test_an_acceptor_that_does_not_know_the_key_is_not_believed() -> None:
    dialler, acceptor = sides(acceptor_key=b"wrong")
    dialler.prove(acceptor.challenge(dialler.hello()))
    with pytest.raises(Refused) as refused:
        dialler.conclude(acceptor.verdict())
    assert refused.value.reason is Refusal.KEY


@pytest.mark.parametrize(
    ("dialler", "acceptor", "chosen"),
    [((2, 2), (2, 2), 2), ((2, 5), (1, 4), 4), ((3, 4), (2, 9), 4), ((4, 4), (2, 4), 4)],
)
def test_the_newest_version_that_both_speak_is_chosen(
    dialler: tuple[int, int], acceptor: tuple[int, int], chosen: int
) -> None:
    dials = Dialler(A, b"key", Lane.CONTROL, SESSION, Versions(*dialler))
    accepts = Acceptor(B, b"key", Versions(*acceptor))
    accepts.verify(dials.prove(accepts.challenge(dials.hello())))
    assert dials.conclude(accepts.verdict()) == B
    assert (dials.version, accepts.version) == (chosen, chosen)


def test_with_no_version_in_common_both_sides_name_both_ranges() -> None:
    dialler = Dialler(A, b"key", Lane.CONTROL, SESSION, Versions(5, 7))
    acceptor = Acceptor(B, b"key", Versions(2, 3))
    with pytest.raises(Refused, match="versions 5 to 7, this node speaks versions 2 to 3") as refused:
        acceptor.challenge(dialler.hello())
    assert refused.value.reason is Refusal.VERSION
    with pytest.raises(Refused, match="versions 2 to 3, this node speaks versions 5 to 7"):
        dialler.prove(acceptor.turn_away(Refusal.VERSION))


def test_a_hello_of_the_first_release_is_refused_in_words_that_it_understands() -> None:
    acceptor = Acceptor(B, b"key")
    with pytest.raises(Refused, match="version 1, this node speaks version 2"):
        acceptor.challenge(msgspec.msgpack.encode(["mlx-actor-runtime", 1, Lane.CONTROL, bytes(32), SESSION, A]))
    assert msgspec.msgpack.decode(acceptor.turn_away(Refusal.VERSION))[:3] == [0, "version", 2]
    dialler, _ = sides()
    with pytest.raises(Refused, match="version 1, this node speaks version 2"):
        dialler.prove(msgspec.msgpack.encode([0, "version", 1]))


def test_a_later_version_may_say_more_in_its_hello() -> None:
    dialler = Dialler(A, b"key", Lane.CONTROL, SESSION, Versions(2, 9))
    hello = [*msgspec.msgpack.decode(dialler.hello()), {"new": "things"}]
    acceptor = Acceptor(B, b"key")
    acceptor.verify(dialler.prove(acceptor.challenge(msgspec.msgpack.encode(hello))))
    assert acceptor.version == 2


def test_a_version_that_was_not_offered_is_an_offence() -> None:
    dialler, _ = sides()
    with pytest.raises(ProtocolError, match="chose protocol version 3"):
        dialler.prove(msgspec.msgpack.encode([1, 3, bytes(32)]))


def test_who_stands_between_cannot_have_an_older_version_spoken() -> None:
    dialler = Dialler(A, b"key", Lane.CONTROL, SESSION, Versions(2, 3))
    acceptor = Acceptor(B, b"key", Versions(2, 3))
    hello = msgspec.msgpack.decode(dialler.hello())
    hello[1] = 2
    with pytest.raises(Refused) as refused:
        acceptor.verify(dialler.prove(acceptor.challenge(msgspec.msgpack.encode(hello))))
    assert refused.value.reason is Refusal.KEY


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (Refusal.NAME, "two nodes are named a"),
        (Refusal.SELF, "own"),
        (Refusal.DUPLICATE, "node b is linked already"),
        (Refusal.FULL, "as many peers as it takes"),
    ],
)
def test_a_dialler_that_proved_the_key_is_told_why_it_is_refused(refusal: Refusal, text: str) -> None:
    dialler, acceptor = sides()
    acceptor.verify(dialler.prove(acceptor.challenge(dialler.hello())))
    with pytest.raises(Refused, match=text) as refused:
        dialler.conclude(acceptor.verdict(refusal))
    assert (refused.value.reason, refused.value.peer) == (refusal, B)


def test_a_verdict_cannot_be_changed_on_the_way() -> None:
    dialler, acceptor = sides()
    acceptor.verify(dialler.prove(acceptor.challenge(dialler.hello())))
    verdict = acceptor.verdict(Refusal.DUPLICATE).replace(Refusal.DUPLICATE.encode(), b"_________")
    with pytest.raises(Refused) as refused:
        dialler.conclude(verdict)
    assert refused.value.reason is Refusal.KEY


def test_a_recorded_handshake_opens_nothing() -> None:
    dialler, acceptor = sides()
    hello = dialler.hello()
    proof = dialler.prove(acceptor.challenge(hello))
    acceptor.verify(proof)
    again = Acceptor(B, b"key")
    again.challenge(hello)
    with pytest.raises(Refused):
        again.verify(proof)


def test_a_nodes_own_proof_cannot_be_sent_back_to_it() -> None:
    """An attacker without the key lets the node dial it, and answers with what the node itself computes."""
    dialler, _ = sides()
    hello = dialler.hello()
    acceptor = Acceptor(A, b"key")
    proof = dialler.prove(acceptor.challenge(hello))
    mac = msgspec.msgpack.decode(proof)[1]
    with pytest.raises(Refused) as refused:
        dialler.conclude(msgspec.msgpack.encode([3, A, "", mac]))
    assert refused.value.reason is Refusal.KEY


def test_a_proof_for_one_lane_is_none_for_the_other() -> None:
    control, bulk = (Dialler(A, b"key", lane, SESSION) for lane in Lane)
    acceptor = Acceptor(B, b"key")
    challenge = acceptor.challenge(bulk.hello())
    control.hello()
    with pytest.raises(Refused):
        acceptor.verify(control.prove(challenge))


@pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "a/b", "x" * 64])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    hello = Dialler(msgspec.structs.replace(A, node=name), b"key", Lane.BULK, SESSION).hello()
    with pytest.raises(ProtocolError, match="malformed"):
        Acceptor(B, b"key").challenge(hello)


def test_a_large_message_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        Acceptor(B, b"key").challenge(bytes(MAX_MESSAGE + 1))


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), step=st.integers(0, 3))
def test_mutated_handshakes_are_refused_and_nothing_else(seed: int, step: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated, not a secret

    def mutate(payload: bytes, at_step: int) -> bytes:
        if at_step != step:
            return payload
        changed = bytearray(payload)
        for _ in range(chance.randint(1, 5)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed)) + 1])])

    for _ in range(10):
        dialler, acceptor = sides()
        try:
            challenge = acceptor.challenge(mutate(dialler.hello(), 0))
            proof = dialler.prove(mutate(challenge, 1))
            acceptor.verify(mutate(proof, 2))
            assert dialler.conclude(mutate(acceptor.verdict(), 3)) == B
        except (Refused, ProtocolError):
            pass
