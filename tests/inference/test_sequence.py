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
from runtime.inference.protocol import Hidden, OpenSequence, Prefilled, Sampled, Step
from runtime.inference.sequence import StageSequence
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


def opened(sampling: Sampling | None = None, logprobs: int | None = 0) -> OpenSequence:
    return OpenSequence(1, PROMPT, sampling or Sampling(), 3, logprobs)


def run(sequence: StageSequence, step: Step | Hidden) -> Hidden | Sampled | Prefilled:
    return sequence.step(step)()


def sampled(sequence: StageSequence, step: Step | Hidden) -> Sampled:
    result = run(sequence, step)
    assert isinstance(result, Sampled)
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", sliding=8)


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Shard:
    return load(tiny, 0, 4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0, repetition_penalty=1.3)], ids=str)
def test_going_on_from_a_token_nobody_has_seen_equals_feeding_it(whole: Shard, sampling: Sampling) -> None:
    blind, seeing = (StageSequence(whole, opened(sampling)) for _ in range(2))
    results = []
    for sequence in (blind, seeing):
        run(sequence, Step(1, 0, PROMPT[:-1], sample=False))
        results.append([sampled(sequence, Step(1, len(PROMPT) - 1, PROMPT[-1:], sample=True))])
    assert results[0] == results[1]
    for position in range(len(PROMPT), len(PROMPT) + 30):
        results[0].append(sampled(blind, Step(1, position, None, sample=True)))
        results[1].append(sampled(seeing, Step(1, position, (results[1][-1].token,), sample=True)))
    assert results[0] == results[1]


def test_steps_may_be_dispatched_before_the_one_before_is_collected(whole: Shard) -> None:
    ahead, after = (StageSequence(whole, opened()) for _ in range(2))
    steps = [Step(1, 0, PROMPT, sample=True), *(Step(1, len(PROMPT) + n, None, sample=True) for n in range(10))]
    collects = [ahead.step(step) for step in steps]
    assert [collect() for collect in collects] == [run(after, step) for step in steps]


@pytest.mark.parametrize("position", [0, len(PROMPT) - 1, len(PROMPT) + 1])
def test_a_step_that_is_not_the_next_one_is_refused_and_changes_nothing(whole: Shard, position: int) -> None:
    sequence, other = (StageSequence(whole, opened()) for _ in range(2))
    for each in (sequence, other):
        run(each, Step(1, 0, PROMPT, sample=True))
    with pytest.raises(ProtocolError, match=f"at position {len(PROMPT)} here, and a step for {position} came"):
        sequence.step(Step(1, position, (4,), sample=True))
    step = Step(1, len(PROMPT), (4,), sample=True)
    assert run(sequence, step) == run(other, step)


def test_there_is_no_going_on_from_a_token_that_was_never_sampled(whole: Shard) -> None:
    sequence = StageSequence(whole, opened())
    run(sequence, Step(1, 0, PROMPT, sample=False))
    with pytest.raises(ProtocolError, match="no sampled token"):
        sequence.step(Step(1, len(PROMPT), None, sample=True))


def test_taking_in_a_prompt_tells_how_far_it_came(whole: Shard) -> None:
    sequence = StageSequence(whole, opened())
    assert run(sequence, Step(1, 0, PROMPT[:7], sample=False)) == Prefilled(1, 7)
    assert run(sequence, Step(1, 7, PROMPT[7:9], sample=False)) == Prefilled(1, 9)


@pytest.mark.parametrize("span", [(0, 2), (1, 3), (2, 4), (3, 4), (0, 4)], ids=str)
def test_a_long_decode_neither_grows_its_graph_nor_keeps_more_than_its_cache(tiny: Path, span: tuple[int, int]) -> None:
    """Layers alternate between full attention and a window, so that ghosts of both kinds are advanced."""
    shard = load(tiny, *span)
    sequence = StageSequence(shard, opened(logprobs=None))

    def decode(first: int, count: int) -> None:
        for position in range(first, first + count):
            if shard.span.is_first:
                run(sequence, Step(1, position, (7,), sample=True))
            else:
                hidden = mx.full((1, 1, 64), 0.1)
                run(sequence, Hidden(1, position, to_tensors({"hidden": hidden}), sample=True))

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
    whole = StageSequence(model.stage(LayerSpan.whole(total)), opened())
    first, second = (
        StageSequence(model.stage(LayerSpan(start, stop, total)), opened()) for start, stop in ((0, 4), (4, total))
    )
    for step in (
        Step(1, 0, PROMPT[:20], sample=False),
        Step(1, 20, PROMPT[20:], sample=True),
        Step(1, 25, (7,), sample=True),
        Step(1, 26, (9,), sample=True),
    ):
        hidden = run(first, step)
        assert isinstance(hidden, Hidden)
        assert len(hidden.state) > 1
        assert run(second, over_the_wire(hidden)) == run(whole, step)


def test_a_step_without_its_hidden_state_is_refused(tiny: Path) -> None:
    sequence = StageSequence(load(tiny, 2, 4), opened())
    with pytest.raises(ProtocolError, match="without its hidden state"):
        run(sequence, Hidden(1, 0, to_tensors({"other": mx.zeros((1, 1, 64))}), sample=True))
