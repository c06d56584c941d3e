"""One sequence on one stage: its steps, its cache, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from runtime.actors import ActorRef
from runtime.actors.signal import Tell
from runtime.errors import ProtocolError
from runtime.inference.arrays import to_tensors
from runtime.inference.check import RandomModel
from runtime.inference.compute import Computation
from runtime.inference.microbatch import StageSequence
from runtime.inference.protocol import Chosen, Hidden, OpenSequence, Prefilled, Row, Sampled, Step
from runtime.inference.sequence import Result, StageSequences
from runtime.inference.shard import Shard
from runtime.spi import Checkpoint, LayerSpan, LoadOptions, Sampling, read_checkpoint
from runtime.testing.models import tiny_llama
from runtime.testing.tiny import tiny_config
from runtime.wire.codec import decode, encode
from runtime_crossing.family import CrossingFamily
from runtime_dense.family import DenseFamily

PROMPT = tuple(range(5, 30))


def load(folder: Path, start: int, stop: int) -> Shard:
    checkpoint = read_checkpoint(folder)
    family = DenseFamily()
    shard = Shard(family.build(checkpoint.config), LayerSpan(start, stop, checkpoint.num_layers))
    family.load(shard.model, checkpoint, shard.span, LoadOptions("float32", dequantize=True), lambda done, total: None)
    return shard


class Alone:
    """The only sequence of a stage."""

    def __init__(self, shard: Shard, sampling: Sampling | None = None, logprobs: int | None = 0) -> None:
        opened = OpenSequence(1, PROMPT, len(PROMPT), sampling or Sampling(), 3, logprobs, (), 0)
        self.open = {1: StageSequence(opened)}
        self.work = StageSequences(shard, self.open)

    def start(self, position: int, tokens: tuple[int, ...] | None, *, sample: bool = True) -> Computation[Result]:
        computation = self.work.step(Step(9, 1 if sample else None, (Row(1, position, tokens),)))
        computation.launch()
        return computation

    def take_in(self, position: int, tokens: tuple[int, ...]) -> Result:
        return self.start(position, tokens, sample=False).collect()

    def sample(self, position: int, tokens: tuple[int, ...] | None) -> Chosen:
        result = self.start(position, tokens).collect()
        assert isinstance(result, Sampled)
        return result.tokens[0]

    def hear(self, position: int, hidden: mx.array) -> Result:
        return self.work.step(Hidden(9, 1, ((1, position, 1),), (), to_tensors({"hidden": hidden}))).collect()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", sliding=8)


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Shard:
    return load(tiny, 0, 4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0, repetition_penalty=1.3)], ids=str)
def test_going_on_from_a_token_nobody_has_seen_equals_feeding_it(whole: Shard, sampling: Sampling) -> None:
    blind, seeing = (Alone(whole, sampling) for _ in range(2))
    results = []
    for sequence in (blind, seeing):
        sequence.take_in(0, PROMPT[:-1])
        results.append([sequence.sample(len(PROMPT) - 1, PROMPT[-1:])])
    assert results[0] == results[1]
    for position in range(len(PROMPT), len(PROMPT) + 30):
        results[0].append(blind.sample(position, None))
        results[1].append(seeing.sample(position, (results[1][-1].token,)))
    assert results[0] == results[1]


def test_steps_may_be_dispatched_before_the_one_before_is_collected(whole: Shard) -> None:
    ahead, after = (Alone(whole) for _ in range(2))
    for each in (ahead, after):
        each.take_in(0, PROMPT[:-1])
    last = len(PROMPT) - 1
    started = [ahead.start(last + n, None if n else PROMPT[-1:]) for n in range(10)]
    assert [computation.collect() for computation in started] == [
        after.start(last + n, None if n else PROMPT[-1:]).collect() for n in range(10)
    ]


@pytest.mark.parametrize("position", [0, len(PROMPT) - 1, len(PROMPT) + 1])
def test_a_step_that_is_not_the_next_one_is_refused(whole: Shard, position: int) -> None:
    sequence = Alone(whole)
    sequence.take_in(0, PROMPT)
    with pytest.raises(ProtocolError, match=f"at position {len(PROMPT)} here, and a step for {position} came"):
        sequence.start(position, (4,))


def test_there_is_no_going_on_from_a_token_that_was_never_sampled(whole: Shard) -> None:
    sequence = Alone(whole)
    sequence.take_in(0, PROMPT)
    with pytest.raises(ProtocolError, match="no sampled token"):
        sequence.start(len(PROMPT), None)


def test_a_sequence_whose_step_failed_is_lost_rather_than_gone_on_with(whole: Shard) -> None:
    sequence = Alone(whole)
    sequence.take_in(0, PROMPT[:-1])
    sequence.sample(len(PROMPT) - 1, PROMPT[-1:])
    with pytest.raises(ProtocolError):
        sequence.start(3, (4,))
    with pytest.raises(ProtocolError, match="was dropped"):
        sequence.start(len(PROMPT), (4,))


@pytest.mark.parametrize("sample", [True, False])
def test_a_step_of_a_sequence_that_was_closed_is_answered_all_the_same(whole: Shard, tiny: Path, sample: bool) -> None:
    for shard in (whole, load(tiny, 0, 2)):
        sequence = Alone(shard)
        sequence.open.clear()
        built = sequence.start(0, (4,), sample=sample)
        assert not built.teaches, "its time says nothing of a step that computes"
        answer = built.collect()
        if not shard.span.is_last:
            assert answer == Hidden(9, 1 if sample else None, (), (), {})
        else:
            assert answer == (Sampled(9, ()) if sample else Prefilled(9))


@pytest.mark.parametrize("span", [(0, 2), (1, 3), (2, 4), (3, 4), (0, 4)], ids=str)
def test_a_long_decode_neither_grows_its_graph_nor_keeps_more_than_its_cache(tiny: Path, span: tuple[int, int]) -> None:
    """Layers alternate between full attention and a window, so that ghosts of both kinds are advanced."""
    shard = load(tiny, *span)
    sequence = Alone(shard, logprobs=None)

    def decode(first: int, count: int) -> None:
        for position in range(first, first + count):
            if shard.span.is_first:
                sequence.start(position, (7,)).collect()
            else:
                sequence.hear(position, mx.full((1, 1, 64), 0.1))

    # A cache grows in steps of 256 positions; between two of those only what is forgotten to be evaluated grows.
    decode(0, 300)
    mx.clear_cache()
    before = mx.get_active_memory()
    decode(300, 200)
    mx.clear_cache()
    assert mx.get_active_memory() - before < 4096


@pytest.mark.parametrize("layers", [4, 40])
def test_ghosts_hold_next_to_nothing_however_many_they_are(tmp_path: Path, layers: int) -> None:
    shard = load(tiny_llama(tmp_path / "model", layers=layers, sliding=8), 0, 1)
    cache = shard.new_cache()
    mx.eval(shard.forward(mx.array([list(PROMPT)]), cache), shard.ghost_state(cache))
    held = {id(entry): entry for index, entry in enumerate(cache) if index not in shard.span}
    assert sum(getattr(entry, "nbytes", 0) for entry in held.values() if entry.keys is not None) < 1024
    assert {entry.offset for entry in cache} == {len(PROMPT)}


def over_the_wire(message: Hidden) -> Hidden:
    payload = b"".join(bytes(part) for part in encode(Tell(ActorRef("b", "/stages/1"), message)))
    signal = decode(payload)
    assert isinstance(signal, Tell)
    assert isinstance(signal.message, Hidden)
    return signal.message


@pytest.mark.parametrize("module", ["deepseek_v41", "gemma4_text", "kimi_k3"])
def test_what_else_layers_hand_on_travels_with_the_hidden_state(module: str) -> None:
    config = tiny_config(module)
    model = RandomModel({"crossing": CrossingFamily()}, Checkpoint(path=Path(module), config=config, tensors={}))
    total = model.layers
    whole = Alone(model.stage(LayerSpan.whole(total)))
    first, second = (Alone(model.stage(LayerSpan(start, stop, total))) for start, stop in ((0, 4), (4, total)))
    for position, tokens, sample in (
        (0, PROMPT[:20], False),
        (20, PROMPT[20:24], False),
        (24, PROMPT[24:], True),
        (25, (7,), True),
    ):
        hidden = first.start(position, tokens, sample=sample).collect()
        assert isinstance(hidden, Hidden)
        assert len(hidden.state) > 1
        assert (
            second.work.step(over_the_wire(hidden)).collect() == whole.start(position, tokens, sample=sample).collect()
        )


def test_a_step_without_its_hidden_state_is_refused(tiny: Path) -> None:
    sequence = Alone(load(tiny, 2, 4))
    with pytest.raises(ProtocolError, match="without its hidden state"):
        sequence.work.step(Hidden(9, 1, ((1, 0, 1),), (), to_tensors({"other": mx.zeros((1, 1, 64))})))
