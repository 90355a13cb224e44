"""Noise of the score function's gradients of discrete sites, by baseline; `svi_gradients.py scores` runs it.

Eight switches in each of 1,000 rows: in one site, in four sites that are seen apart, each before the next comes, and in
two layers, four that move the other four, of which all are seen mixed. Each kind of baseline has a fit of its own, and
its noise is that of the networks that guide the switches where that fit ends. There, leaving one out of two draws is
measured as well, so that ratios are of one place; and once, with the cost of earlier sites as it is, and left out.
Times of one gradient are taken in turns.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from runs import markdown

from bdl.svi import SVI, Amortized, Global, Local, Observed, score

NUM_ROWS, BATCH, NUM_TURNS = 1000, 100, 200
NUM_STEPS = 500
"""Of a fit, after which the noise is measured."""

OFFSET = 1.5
"""Of a lower switch's log odds, by the upper one that moves it."""


def bernoulli(logits: Any) -> Any:
    import tensorflow_probability as tfp

    return tfp.distributions.Bernoulli(logits=logits)


def seen(switches: Any, weights: Any) -> Any:
    import tensorflow_probability as tfp

    return tfp.distributions.Normal(ops.matmul(ops.cast(switches, "float32"), weights), 0.5)


def prior(shape: tuple[int, ...]) -> Any:
    import tensorflow_probability as tfp

    return tfp.distributions.Normal(ops.zeros(shape), 1.0)


RARE = float(np.log(0.3 / 0.7))


def whole(data: Any) -> Any:
    """All switches in one site."""
    weights = yield Global("weights", prior((8, 8)))
    switches = yield Local("switches", bernoulli(ops.full((8,), RARE)))
    yield Observed("y", seen(switches, weights), data["y"])


def apart(data: Any) -> Any:
    """Four sites of two switches, each seen by itself."""
    weights = yield Global("weights", prior((4, 2, 2)))
    for place in range(4):
        switches = yield Local(f"switches_{place}", bernoulli(ops.full((2,), RARE)))
        yield Observed(f"y_{place}", seen(switches, weights[place]), data["y"][:, 2 * place : 2 * place + 2])


def layers(data: Any) -> Any:
    """Four switches that move four others, all of them seen mixed."""
    weights = yield Global("weights", prior((8, 8)))
    upper = yield Local("upper", bernoulli(ops.full((4,), RARE)))
    lower = yield Local("lower", bernoulli(OFFSET * (2.0 * ops.cast(upper, "float32") - 1.0)))
    yield Observed("y", seen(ops.concatenate([upper, lower], axis=-1), weights), data["y"])


@dataclass(frozen=True)
class Told:
    """A story, the sizes of its discrete sites, and where its weights begin."""

    story: Callable[..., Any]
    sites: tuple[str, ...]
    start: Any


_EYE = 2.0 * np.eye(2)
STORIES = {
    "one site": Told(whole, ("switches",), 2.0 * np.eye(8)),
    "four sites, seen apart": Told(apart, tuple(f"switches_{place}" for place in range(4)), np.stack([_EYE] * 4)),
    "two layers": Told(layers, ("upper", "lower"), 2.0 * np.eye(8)),
}


@dataclass(frozen=True)
class Kind:
    """A baseline, with the draws of a step."""

    baseline: str
    draws: int

    @property
    def name(self) -> str:
        """For the table."""
        return {"leave_one_out": "leave one out", "learned": "learned", "network": "network"}[self.baseline]


KINDS = (
    Kind("leave_one_out", 2),
    Kind("learned", 1),
    Kind("learned", 2),
    Kind("network", 1),
)


def rows(name: str, seed: int) -> dict[str, np.ndarray]:
    """Data of a story's own kind."""
    random = np.random.default_rng(seed)
    weights = 2.0 * np.eye(8) + 0.5 * random.normal(size=(8, 8))
    if name == "four sites, seen apart":
        weights *= np.kron(np.eye(4), np.ones((2, 2)))
    switches = random.random((NUM_ROWS, 8)) < 0.3
    if name == "two layers":
        odds = OFFSET * (2.0 * switches[:, :4] - 1.0)
        switches[:, 4:] = random.random((NUM_ROWS, 4)) < 1 / (1 + np.exp(-odds))
    return {"y": (switches @ weights + 0.5 * random.normal(size=(NUM_ROWS, 8))).astype("float32")}


def made(name: str, kind: Kind, seed: int) -> SVI:
    told = STORIES[name]
    keras.utils.set_random_seed(seed)

    def network() -> keras.Layer:
        return keras.Sequential([keras.layers.Dense(32, "tanh")])

    guide = {site: Amortized(network(), ["y"], family="categories") for site in told.sites}
    baseline = network() if kind.baseline == "network" else kind.baseline
    model = SVI(told.story, guide, start={"weights": told.start}, num_samples=kind.draws, baseline=baseline, seed=seed)
    model.compile(keras.optimizers.Adam(1e-2), steps_per_execution=10)
    return model


@contextlib.contextmanager
def measured(share: float | None = None, by_draws: bool = False) -> Iterator[None]:
    """Within this context draws measure each other, or the cost of earlier sites has a share that is given."""
    kept = SVI.baselines_of, score.joined
    if by_draws:
        SVI.baselines_of = lambda self, chain: {}  # type: ignore[method-assign]
    if share is not None:
        score.joined = lambda after, before: after if before is None else after + share * before
    try:
        yield
    finally:
        SVI.baselines_of, score.joined = kept  # type: ignore[method-assign]


class Networks:
    """The variables of the networks that guide the switches."""

    def __init__(self, model: SVI, sites: tuple[str, ...]) -> None:
        self.trainable_weights = [weight for site in sites for weight in model.guide_of(site).trainable_weights]


def noises(model: SVI, name: str, kind: Kind, data: Any, noise: Any) -> dict[str, dict[str, float]]:
    """Sum of variances, and milliseconds of the fastest gradient, of a kind and of two draws without it."""
    sites = STORIES[name].sites
    told: dict[str, tuple[int, dict[str, Any]]] = {"own": (kind.draws, {}), "pair": (2, {"by_draws": True})}
    if kind == KINDS[0]:
        told = {"own": (2, {}), "all costs": (2, {"share": 1.0}), "later costs": (2, {"share": 0.0})}
        told = told if len(sites) > 1 else {"own": (2, {})}
    gradients, draws, times = {}, {each: [] for each in told}, {each: [] for each in told}
    for each, (number, settings) in told.items():
        with measured(**settings):
            model.num_samples = number
            gradients[each] = noise(model, Networks(model, sites), data).gradient
            gradients[each]()
    for _, each in itertools.product(range(NUM_TURNS), told):
        began = time.perf_counter()
        draws[each].append(gradients[each]().numpy())
        times[each].append(1e3 * (time.perf_counter() - began))
    model.num_samples = kind.draws
    return {
        each: {"variance": float(np.var(draws[each], axis=0, ddof=1).sum()), "ms": min(times[each])} for each in told
    }


def run(seeds: int, noise: Any, found: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Figures of all stories, kinds and seeds; those that are there already are left out."""
    for seed, name, kind in itertools.product(range(seeds), STORIES, KINDS):
        told: dict[str, Any] = {"story": name, "seed": seed, "baseline": kind.name, "draws": kind.draws}
        if any(told.items() <= row.items() for row in found):
            continue
        data, model = rows(name, seed), made(name, kind, seed)
        model.fit(data, batch_size=BATCH, steps=NUM_STEPS, verbose=0)
        elbo = model.bounds(data, num_samples=20, seed=1).elbo / NUM_ROWS
        found = [*found, {**told, "elbo": elbo, **noises(model, name, kind, data, noise)}]
        print(json.dumps(found[-1]), flush=True)
        yield found


def table(found: list[dict[str, Any]]) -> str:
    """Medians over the seeds, with the lowest and highest of a ratio."""

    def spread(values: list[float]) -> str:
        return f"{np.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    lines = []
    for name, kind in itertools.product(STORIES, KINDS):
        own = [row for row in found if (row["story"], row["baseline"], row["draws"]) == (name, kind.name, kind.draws)]
        others = {"": "own", **{f", {key}": key for key in ("all costs", "later costs") if key in own[0]}}
        for label, key in others.items():
            pair = "own" if kind == KINDS[0] else "pair"
            ratio = [row[key]["variance"] / row[pair]["variance"] for row in own]
            cost = [row[key]["ms"] / row[pair]["ms"] for row in own]
            variance = f"{np.median([row[key]['variance'] for row in own]):.2g}"
            elbo = spread([row["elbo"] for row in own]) if key == "own" else ""
            lines.append(
                [name, kind.name + label, str(kind.draws), variance, spread(ratio), spread(cost), elbo, str(len(own))]
            )
    header = ["switches", "baseline", "draws", "variance", "to leave one out", "time to that", "ELBO a row", "seeds"]
    return markdown(header, lines)
