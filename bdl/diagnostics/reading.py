"""Posteriors of layers of other libraries, read from what they add to the loss.

Whatever a layer's variables are called: if it adds c KL(N(m, s^2) || N(0, p^2)) with s = f(r), then for every change of
its means m and of its variable r the loss that it adds changes by

    c * change of sum(-log s)  +  c / p^2 * change of sum(s^2 + m^2) / 2.

Two numbers, c and p, are fitted to six changes. The f by which the fit leaves no more than noise and rounding is how
the layer holds its scales, and p is its prior's. Where no f does, the layer is not read, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.foreign import TRANSFORMS, Pair, Transform, draws_noise, in_order, is_foreign, pairs_of
from bdl.diagnostics.weight_posterior import WeightPosterior, to_numpy
from bdl.diagnostics.weights import aside
from bdl.keras_internals import take_losses

_EXAMPLES = 64
_DRAWS = 8  # of the noise, for layers that estimate their KL from one sample
_STEP = 0.3  # by which variables of scales are moved, relative
_TOLERANCE = 3e-3  # of what a fit leaves, as a share of the largest change
_ERRORS = 4.0  # standard errors that it may leave of a sampled KL
_ROUNDING = 8.0 * float(np.finfo("float32").eps)  # of a sum over all weights

State = dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Readings:
    """What could be read of the layers of other libraries in a model.

    Args:
        posteriors: By the `id` of the layer.
        unread: A sentence for each layer that adds something to the loss that could not be read.
        silent: Names of layers that draw noise, are named like a posterior, and add nothing to the loss.
    """

    posteriors: dict[int, tuple[WeightPosterior, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


def read_foreign(model: Any, x: Any) -> Readings:
    """Reads the layers of other libraries; the model is left as it was.

    Args:
        model: A built Keras model.
        x: A few inputs.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> read_foreign(network, np.ones((2, 4), "float32")).posteriors  # bdl's own layers are read by what they are
    {}
    """
    layers = [layer for layer in in_order(model) if is_foreign(layer)]
    if not layers:
        return Readings()
    added = _Added(model, layers, x)
    pairs = {id(layer): pairs_of(layer) for layer in layers}
    found = added.readings(pairs)
    posteriors: dict[int, tuple[WeightPosterior, ...]] = {}
    unread, silent = [], []
    for layer in layers:
        read, has_pairs = found.get(id(layer), []), bool(pairs[id(layer)])
        if has_pairs and read and all(part is not None for part in read):
            posteriors[id(layer)] = tuple(part for part in read if part is not None)
        elif added.adds(layer):
            names = ", ".join(pair.raw.name for pair in pairs[id(layer)])
            why = (
                f"what it adds to the loss is no KL of Gaussians of {names}"
                if names
                else "it holds no variable named like a scale"
            )
            unread.append(
                f"What {layer.name!r} ({type(layer).__name__}) adds to the loss cannot be read as a KL: {why}. T and "
                "KL / N are without it, and so are not judged of it."
            )
        elif has_pairs and draws_noise(layer):
            silent.append(layer.name)
    return Readings(posteriors, tuple(unread), tuple(silent))


class _Added:
    """What each layer adds to the loss, as a function of its variables."""

    def __init__(self, model: Any, layers: list[keras.Layer], x: Any) -> None:
        self._model, self._layers = model, layers[::-1]  # inner ones first: a layer's losses hold those inside
        self._x = keras.tree.map_structure(lambda leaf: ops.convert_to_tensor(np.asarray(leaf)[:_EXAMPLES]), x)
        self._num_draws = 2
        first = self.values([])
        if any(np.ptp(values) > 0.0 for values in first.values()):
            self._num_draws = _DRAWS
            first = self.values([])
        self._base = first

    def adds(self, layer: keras.Layer) -> bool:
        """Whether a layer adds anything that is no regularizer of activities."""
        is_regularizer = getattr(layer, "activity_regularizer", None) is not None
        return not is_regularizer and bool(np.any(self._base[id(layer)] != 0.0))

    def values(self, assigned: list[tuple[keras.Variable, np.ndarray]]) -> State:
        """What each layer adds under each draw of the noise, the same draws for all values of the variables."""
        found: dict[int, list[float]] = {id(layer): [] for layer in self._layers}
        with aside(self._model):
            for variable, value in assigned:
                variable.assign(value.astype("float32"))
            for _ in range(self._num_draws):
                self._model(self._x, training=True)
                for layer in self._layers:
                    found[id(layer)].append(sum(float(np.sum(to_numpy(loss))) for loss in take_losses(layer)))
        return {key: np.array(values) for key, values in found.items()}

    def readings(self, pairs: dict[int, list[Pair]]) -> dict[int, list[WeightPosterior | None]]:
        """The posterior of each pair, None where it cannot be read; nothing of layers that no change moves.

        All layers are moved at once, since each adds what it adds by its own variables.
        """
        found: dict[int, list[WeightPosterior | None]] = {}
        for number in range(max(map(len, pairs.values()))):
            present = {key: each[number] for key, each in pairs.items() if len(each) > number}
            moves = {key: _moves(pair) for key, pair in present.items()}
            changes: dict[int, list[np.ndarray]] = {key: [] for key in present}
            for move in range(_NUM_MOVES):
                assigned = [
                    (variable, value)
                    for key, pair in present.items()
                    for variable, value in zip((pair.mean, pair.raw), moves[key][move], strict=True)
                ]
                values = self.values(assigned)
                for key in present:
                    changes[key].append(values[key] - self._base[key])
            for key, pair in present.items():
                rounding = _ROUNDING * float(np.abs(self._base[key]).max())
                changed = np.stack(changes[key])
                if np.abs(changed).max() > rounding:
                    found.setdefault(key, []).append(_read(pair, moves[key], changed, rounding))
        return found


_NUM_MOVES = 6


def _moves(pair: Pair) -> list[tuple[np.ndarray, np.ndarray]]:
    """Values of means and of the other variable: three changes of each."""
    random = np.random.default_rng(0)
    mean, raw = to_numpy(pair.mean).astype("float64"), to_numpy(pair.raw).astype("float64")
    step = _STEP * np.where(np.abs(raw) > 1e-3, np.abs(raw), 1.0)
    sign = np.where(random.random(raw.shape) < 0.5, -1.0, 1.0)
    spread = max(float(mean.std()), 0.1)
    return [
        (mean, raw - step),
        (mean, raw + step),
        (mean, raw + step * sign),
        (0.0 * mean, raw),  # where priors differ most that are alike further out
        (2.0 * mean + spread, raw),
        (mean + spread * random.normal(size=mean.shape), raw),
    ]


def _read(
    pair: Pair, moves: list[tuple[np.ndarray, np.ndarray]], changed: np.ndarray, rounding: float
) -> WeightPosterior | None:
    """The posterior by the transform that agrees, the suggested one first; None if none does."""
    others = [transform for transform in TRANSFORMS if transform is not pair.suggested]
    for transform in (pair.suggested, *others):
        prior_scale = _fitted_prior(pair, transform, moves, changed, rounding)
        if prior_scale is not None:
            return pair.read_as(transform, prior_scale)
    return None


def _fitted_prior(
    pair: Pair, transform: Transform, moves: list[tuple[np.ndarray, np.ndarray]], changed: np.ndarray, rounding: float
) -> float | None:
    """The prior's scale, where the changes agree with this transform."""
    start = (to_numpy(pair.mean).astype("float64"), to_numpy(pair.raw).astype("float64"))
    with np.errstate(all="ignore"):
        entropy, energy = _parts(transform, start)
        columns = np.array([_parts(transform, move) for move in moves]) - (entropy, energy)
    if not np.all(np.isfinite(columns)):
        return None
    change = changed.mean(axis=1)
    noise = changed.std(axis=1, ddof=1) / np.sqrt(changed.shape[1])
    allowed = _ERRORS * noise + _TOLERANCE * np.abs(change).max() + rounding
    (weight, weight_by_variance), *_ = np.linalg.lstsq(columns / allowed[:, None], change / allowed, rcond=None)
    left = np.abs(change - columns @ (weight, weight_by_variance))
    if np.any(left > allowed) or weight <= 0.0 or weight_by_variance <= 0.0:
        return None
    return float(np.sqrt(weight / weight_by_variance))


def _parts(transform: Transform, values: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """`sum(-log s)` and `sum(s^2 + m^2) / 2`."""
    mean, scale = values[0], transform.scale(values[1])
    return float(-np.log(scale).sum()), float(0.5 * np.sum(scale**2 + mean**2))
