"""``runtime check``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.cli.options import ConfigFiles, Json, Overrides, effective_config
from runtime.cli.output import print_json, print_table
from runtime.cli.providers import make_catalogue, make_families
from runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from runtime.config.load import Config
    from runtime.inference.check import CutResult, Subject
    from runtime.spi import Checkpoint
    from runtime.spi.loader import Plugins


def check(
    model: Annotated[str, typer.Argument(help="A model's name or folder; with --random-weights a config.json too.")],
    cuts: Annotated[
        str | None, typer.Option(metavar="1,5,9", help="Layers to cut before, each in turn and then all at once.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Fill the model with random numbers, and load none.")
    ] = False,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Prove that a model computes the same cut into stages as it does whole.

    It runs whole and split over a prompt in chunks, decoding, and a batch of two prompts. Exit status 0 is: every
    logit is the same to the last bit, for every cut.
    """
    settings, plugins = effective_config(config, overrides)
    checkpoint = _checkpoint(settings, plugins, model, alone=random_weights)
    subject = _subject(settings, plugins, checkpoint, random_weights=random_weights)
    ways = _ways(cuts, subject.layers)
    report: dict[str, Any] = {
        "model": model,
        "model_type": checkpoint.model_type,
        "layers": subject.layers,
        "weights": "random" if random_weights else "loaded",
        "tolerance": 0.0,
    }
    found = list(_timed(subject, ways, lambda text: None if as_json else typer.echo(text, err=True)))
    report["exact"] = all(result.is_exact for result, _ in found)
    report["cuts"] = [
        {
            "cuts": list(result.cuts),
            "difference": result.difference,
            "batch_difference": result.batch_difference,
            "exact": result.is_exact,
            "state": list(result.state),
            "seconds": round(seconds, 3),
        }
        for result, seconds in found
    ]
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["exact"]:
        raise typer.Exit(1)


def _print(report: dict[str, Any]) -> None:
    print_table(
        ("CUT BEFORE LAYER", "LARGEST DIFFERENCE", "IN A BATCH", "CROSSING THE CUT"),
        ((each["cuts"], each["difference"], each["batch_difference"], each["state"]) for each in report["cuts"]),
    )
    exact = "to the last bit the same" if report["exact"] else "NOT the same"
    typer.echo(f"\n{report['model']} ({report['model_type']}, {report['layers']} layers): whole and cut are {exact}")


def _timed(
    subject: Subject, ways: list[tuple[int, ...]], tell: Callable[[str], None]
) -> Iterator[tuple[CutResult, float]]:
    from runtime.inference.check import check as check_model

    before = time.perf_counter()
    for result in check_model(subject, ways):
        now = time.perf_counter()
        tell(f"cut before {', '.join(map(str, result.cuts))}: {'exact' if result.is_exact else 'NOT exact'}")
        yield result, now - before
        before = now


def _checkpoint(settings: Config, plugins: Plugins, model: str, *, alone: bool) -> Checkpoint:
    """Find the model; ``alone`` is whether its configuration is enough."""
    import asyncio

    from runtime.spi.checkpoint import lone_config

    if alone and (found := lone_config(model)) is not None:
        return found
    return asyncio.run(make_catalogue(settings, plugins).fetch(model, lambda progress: None))


def _subject(settings: Config, plugins: Plugins, checkpoint: Checkpoint, *, random_weights: bool) -> Subject:
    from runtime.inference.accelerator import prepare

    backend = prepare().backend
    from runtime.inference.check import RandomModel, StoredModel
    from runtime.inference.options import candidate_options

    families = make_families(settings, plugins)
    models = settings.models
    options = candidate_options(
        checkpoint, backend=backend, dtype=models.dtype, dequantize=str(models.dequantize).lower()
    )[0]
    if random_weights:
        return RandomModel(families, checkpoint, options.dtype)
    return StoredModel(families, checkpoint, options)


def _ways(cuts: str | None, layers: int) -> list[tuple[int, ...]]:
    """Return the ways to cut: once before each layer that is asked for, then before all of them."""
    if cuts is None:
        chosen = list(range(1, layers))
    else:
        try:
            chosen = sorted({int(each) for each in cuts.split(",")})
        except ValueError:
            raise InvalidRequest(f"--cuts is {cuts!r}; give numbers of layers such as 1,5,9") from None
    outside = [cut for cut in chosen if not 0 < cut < layers]
    if outside or not chosen:
        raise InvalidRequest(f"a model of {layers} layers is cut before 1 to {layers - 1}, not {cuts or 'anywhere'}")
    together = [tuple(chosen)] if len(chosen) > 1 else []
    return [*((cut,) for cut in chosen), *together]
