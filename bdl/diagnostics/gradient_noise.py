"""`gradient_noise`: how much of a training step's gradient is signal, noise of the data, and noise of the draw.

The gradient of the step's own loss is compiled once, as a function of the model's variables and of a batch. Seeds are
among the variables: under one draw the layers with a posterior, and a model of a story, have one and the same; other
layers of Keras, which draw for each row (dropout), have another one for each batch. What the former draw for each row
depends on its place (`bdl.random.examples`), of which each batch has its own.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_positive_integer
from bdl.diagnostics.foreign import draws_noise, is_foreign
from bdl.diagnostics.gradient_analysis import GradientNoise, analysis_of_variance
from bdl.diagnostics.gradients import gradient_of
from bdl.diagnostics.measure import take_rows
from bdl.keras_internals import current_value, flatten_layers, is_ragged, is_text, second_moments, take_losses
from bdl.model import VariationalModel
from bdl.protocols import HasKL, TellsStory
from bdl.random import examples
from bdl.training.data import as_arrays, check_lengths, is_data_set
from bdl.training.resumption import seed_generators
from bdl.training.steps import learning_noise
from bdl.uncounted import counted

NOT_MEASURED = "The noise of the gradient was not measured ({}: {})."
NUM_DRAWS = 16
NUM_BATCHES = 2
_MOST_NUMBERS = 2**16
"""Numbers of a variable whose gradient is kept; of larger ones a random sample stands for all."""


def gradient_noise(
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int = 32,
    num_draws: int = NUM_DRAWS,
    num_batches: int = NUM_BATCHES,
    seed: int = 0,
) -> GradientNoise:
    """Measures the gradient of a training step: its signal, the noise of the data, and the noise of the draw.

    Larger batches lower the first noise alone. The second is that of what is drawn once for a batch: weights, or global
    latent values. More draws in a step (`num_samples`) or an estimator with less noise lower it. The loss is the
    step's own, with the T that the training has come to; the model is left as it was. It costs as much as `num_draws *
    num_batches` steps, and one compilation.

    Args:
        model: A compiled `bdl.VariationalModel`, a `bdl.svi.SVI`, or another Keras model with `compile(loss=...)`.
        x: Inputs: arrays; of a model of a story its data, as `fit` takes them.
        y: Labels, as `fit` takes them; None of a model of a story. Sample weights are not counted.
        batch_size: Rows in a batch; at most all there are.
        num_draws: Draws, two at least; the noise of the draw is known the better the more there are.
        num_batches: Batches of random rows under each of them, two at least.
        seed: Of rows and draws.

    Returns:
        A `GradientNoise`, with standard errors, which prints as a sentence.

    Raises:
        ValueError: if an argument is out of range, the data are no arrays, or the model's gradient is not known: it is
            not compiled, has a training step of its own, does not know N or T yet, has its posterior in the optimizer
            (`bdl.optimizers.IVON`), or has a layer of which it is not known what it draws for each row.

    Sources: De, Yadav, Jacobs and Goldstein 2017, "Automated inference with adaptive batches"; McCandlish, Kaplan,
    Amodei et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162.

    Example:
    >>> x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    >>> network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseFlipout(1)])
    >>> model = bdl.VariationalModel(network, bdl.likelihoods.Normal(scale=1.0), kl_weight=1.0)
    >>> model.compile("adam")
    >>> _ = model.fit(x, x[:, :1], epochs=2, verbose=0)
    >>> noise = gradient_noise(model, x, x[:, :1], batch_size=20)
    >>> noise.batch_size, 0.0 <= noise.draw_share <= 1.0
    (20, True)
    """
    check_positive_integer(batch_size, "batch_size")
    for argument, value in (("num_draws", num_draws), ("num_batches", num_batches)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 2:
            raise ValueError(f"`{argument}` must be an integer of at least 2, not {value!r}.")
    if is_data_set(x):
        raise ValueError(f"`x` must be arrays, whose rows can be picked, not {type(x).__name__}.")
    why = why_unmeasurable(model)
    if why is not None:
        raise ValueError(f"`model` must be one whose gradient can be measured, which {model.name!r} is not: {why}")
    return StepGradient(model).noise(x, y, batch_size, num_draws, num_batches, seed)


def noise_where_known(model: Any, x: Any, y: Any, batch_size: int, seed: int = 0) -> GradientNoise | None:
    """The same, or None where the gradient cannot be measured. An error is a warning: a diagnosis has more to say."""
    try:
        step = step_gradient_where_known(model, x)
        return None if step is None else step.noise(x, y, batch_size, seed=seed)
    except Exception as error:  # of the model's own functions, perhaps
        warnings.warn(NOT_MEASURED.format(type(error).__name__, error), stacklevel=3)
        return None


def step_gradient_where_known(model: Any, x: Any) -> StepGradient | None:
    """The gradient of a model's step; None where it cannot be measured, or not on arrays like these.

    Args:
        model: Any model.
        x: Inputs.
    """
    is_plain = (
        x is not None and not is_data_set(x) and not any(map(_is_no_array, keras.tree.flatten(as_arrays(x, "x"))))
    )
    return StepGradient(model) if is_plain and why_unmeasurable(model) is None else None


def _is_no_array(leaf: Any) -> bool:
    return getattr(getattr(leaf, "dtype", None), "kind", None) in ("O", "U", "S") or is_text(leaf) or is_ragged(leaf)


def why_unmeasurable(model: Any) -> str | None:
    """Why the gradient of a model's step cannot be measured, in a sentence; None where it can."""
    if not isinstance(model, keras.Model) or not getattr(model, "compiled", False) or not model.built:
        return "it is not a compiled and built Keras model. Call compile and fit before."
    is_story, is_variational = isinstance(model, TellsStory), isinstance(model, VariationalModel)
    if is_variational and model.optimizer_posterior:
        return "its posterior is its optimizer's, whose steps pair the gradient with the noise of the weights."
    if is_story or is_variational:
        progress = model.progress
        if progress.num_examples is None or progress.needs_length:
            return "it does not know its N or its T before the first fit. Call fit before."
    known = VariationalModel if is_variational else _root(model) if is_story else keras.Model
    if type(model).train_step is not known.train_step:
        return "it has a train_step of its own, whose loss cannot be seen from outside."
    strange = [layer.name for layer in flatten_layers(model) if _is_strange(layer, model)]
    if strange:
        return f"it is not known whether {strange[0]!r} draws for each row, or once for a batch."
    return None if model.trainable_variables else "it has no trainable variables."


def _root(model: Any) -> Any:
    """The class of bdl that a model of a story is of."""
    return next(each for each in type(model).__mro__ if each.__module__.startswith("bdl."))


def _is_strange(layer: keras.Layer, model: Any) -> bool:
    return layer is not model and draws_noise(layer) and is_foreign(layer)


@dataclass(frozen=True, eq=False)
class _Seed:
    """The state of a generator.

    Args:
        variable: It.
        is_of_draw: Whether it is one and the same for all batches of a draw.
    """

    variable: keras.Variable
    is_of_draw: bool

    def state(self, random: np.random.Generator) -> Any:
        """A random state."""
        numbers = random.integers(0, 2**31, size=tuple(self.variable.shape))
        return ops.convert_to_tensor(numbers, dtype=self.variable.dtype)


class StepGradient:
    """The gradient of a model's training step, compiled at the first use and kept for further ones.

    Args:
        model: One that `why_unmeasurable` has nothing against. What is trained may not change.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_story = isinstance(model, TellsStory)
        self._variables = [variable for _, variable in _counted(model)]
        known = {id(variable) for variable in self._variables}
        others = {id(variable): variable for variable in model.variables if id(variable) not in known}
        self._seeds = list(_seeds(model))
        for seed in self._seeds:
            others.pop(id(seed.variable), None)
        self._others = list(others.values())
        random = np.random.default_rng(0)
        self._places = [_places(variable, random) for variable in self._variables]
        self._gradient = gradient_of(self._loss)

    def noise(
        self,
        x: Any,
        y: Any,
        batch_size: int,
        num_draws: int = NUM_DRAWS,
        num_batches: int = NUM_BATCHES,
        seed: int = 0,
    ) -> GradientNoise:
        """Signal and noises on data; see `gradient_noise`."""
        x, y = as_arrays(x, "x"), as_arrays(y, "y")
        rows = check_lengths({"x": x, "y": y})
        batch_size = min(batch_size, rows)
        random, weights = np.random.default_rng(seed), self._weights()
        means, within = [], []
        for draw in range(num_draws):
            own = {id(each): each.state(random) for each in self._seeds if each.is_of_draw}
            gradients = []
            for number in range(num_batches):
                seeds = [own[id(each)] if each.is_of_draw else each.state(random) for each in self._seeds]
                picked = np.sort(random.choice(rows, batch_size, replace=False, shuffle=False))
                place = (draw * num_batches + number) * batch_size
                gradients.append(weights * self._at(self._batch(x, picked), self._batch(y, picked), seeds, place))
            mean = sum(gradients) / num_batches
            means.append(mean)
            within.append(sum(float(np.sum((each - mean) ** 2, dtype="float64")) for each in gradients))
        return analysis_of_variance(np.stack(means), np.array(within), num_batches, batch_size, rows)

    def _at(self, x: Any, y: Any, seeds: list[Any], place: int) -> np.ndarray:
        """The kept numbers of one gradient, in a row."""
        values, others = ([current_value(each) for each in some] for some in (self._variables, self._others))
        found = self._gradient(values, others, seeds, x, y, ops.convert_to_tensor(place, dtype="int32"))
        kept = [
            ops.convert_to_numpy(gradient).ravel()[places] for gradient, places in zip(found, self._places, strict=True)
        ]
        return np.concatenate(kept)

    def _loss(self, values: list[Any], others: list[Any], seeds: list[Any], x: Any, y: Any, place: Any) -> Any:
        """The loss of a training step, as a function of all that it reads."""
        model = self._model
        variables = [*self._variables, *self._others, *(each.variable for each in self._seeds)]
        scope = keras.StatelessScope(list(zip(variables, [*values, *others, *seeds], strict=True)), collect_losses=True)
        size = int(keras.tree.flatten(x)[0].shape[0])
        with scope, counted(), examples(place, size), _step_of(model):
            try:
                outputs = model(x, training=True)
                return model.compute_loss(x, y, outputs, None, training=True)
            finally:
                take_losses(model)

    def _batch(self, values: Any, rows: np.ndarray) -> Any:
        """Rows of arrays as tensors, floating point numbers as Keras hands them on."""
        dtype = self._model.compute_dtype if self._is_story else keras.backend.floatx()

        def taken(leaf: Any) -> Any:
            array = take_rows(leaf, rows)
            return ops.convert_to_tensor(array.astype(dtype) if array.dtype.kind == "f" else array)

        return None if values is None else keras.tree.map_structure(taken, values)

    def _weights(self) -> np.ndarray:
        """Square roots of what the squares of the kept numbers count."""
        moments = second_moments(self._model.optimizer)
        if moments is not None and len(moments) == len(self._model.trainable_variables):
            moments = [moments[place] for place, _ in _counted(self._model)]
        shapes = [tuple(variable.shape) for variable in self._variables]
        fits = moments is not None and [tuple(each.shape) for each in moments if each is not None] == shapes
        found = []
        for number, (variable, places) in enumerate(zip(self._variables, self._places, strict=True)):
            stands_for = float(np.prod(variable.shape)) / max(len(places), 1)
            squares = ops.convert_to_numpy(current_value(moments[number])).ravel()[places] if fits else None  # type: ignore[index]
            found.append((stands_for, squares, len(places)))
        if not any(squares is not None and squares.any() for _, squares, _ in found):  # no step was taken
            found = [(stands_for, None, number) for stands_for, _, number in found]
        return np.concatenate(
            [
                np.sqrt(stands_for) * (np.ones(number) if squares is None else _inverse_fourth_root(squares))
                for stands_for, squares, number in found
            ]
        ).astype("float32")


@contextlib.contextmanager
def _step_of(model: Any) -> Iterator[None]:
    """Within this context a call of the model is that of a training step."""
    with model.as_in_step() if isinstance(model, VariationalModel) else contextlib.nullcontext():
        yield


def _counted(model: Any) -> list[tuple[int, keras.Variable]]:
    """The trained variables and their places, without those that take noise off the gradients of others."""
    left_out = {id(variable) for variable in learning_noise(model)}
    return [pair for pair in enumerate(model.trainable_variables) if id(pair[1]) not in left_out]


def _seeds(model: Any) -> Iterator[_Seed]:
    """The generators of a model: those that draw once for a batch have their noise for each row by its place."""
    for layer, generator in seed_generators(model):
        yield _Seed(generator.state, isinstance(layer, (HasKL, TellsStory)))


def _places(variable: keras.Variable, random: np.random.Generator) -> np.ndarray:
    """Which of a variable's numbers are kept."""
    size = int(np.prod(variable.shape))
    if size <= _MOST_NUMBERS:
        return np.arange(size)
    return np.sort(random.choice(size, _MOST_NUMBERS, replace=False, shuffle=False))


def _inverse_fourth_root(squares: np.ndarray) -> np.ndarray:
    """`v^(-1/4)`, whose square is the weight; numbers without a gradient so far do not count."""
    known = squares > 0
    return np.where(known, np.where(known, squares, 1.0) ** -0.25, 0.0)
