"""After a fit that ends with averaged weights, what was fitted to unaveraged ones is fitted to the average.

An optimizer with `use_ema=True` trains on iterates that jitter around their average, and puts the average in their
place when `fit` ends (Polyak and Juditsky 1992). Two kinds of numbers were fitted to the jittering network:

- Learned constants of the likelihood, such as the scale of `Normal()`, took the jitter for noise in the data. Here they
  move to where the ELBO of the averaged network is greatest, everything else being fixed:

      theta = argmin_theta  mean_n w_n E_q[-log p(y_n | f(x_n), theta)] + penalty(theta) / N

  with the sample weights `w_n`, and `E_q` over draws of the network. For `Normal()` without a prior of its scale,
  `scale^2` is the mean squared residual plus the mean epistemic variance.
- Moving statistics of batch normalisation, which Keras does not average. They become the means over the batches of one
  pass, as in stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).

Everything else that is learned (weights, posterior and prior scales, heads that predict a scale) is a trainable
variable of the network and part of the average.
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from bdl.elbo import elbo_parts
from bdl.keras_internals import (
    compiled,
    current_value,
    flatten_layers,
    input_structure,
    keras_mask,
    training_batches,
    with_mask,
    without_gradients,
)
from bdl.latents import without_local_kl
from bdl.likelihoods.heads import Heads
from bdl.random import Tensor
from bdl.training.batches import num_rows
from bdl.training.data import DEFAULT_BATCH_SIZE, is_read_once
from bdl.uncounted import counted

NUM_DRAWS = 8
"""Draws of the network for each example. An expectation of the log likelihood, unlike a mixture, needs few."""
MAX_EXAMPLES = 4_096
"""Examples that are read, evenly from the whole data: a scale is known to 1 % from them, which costs 1e-4 nats."""
MAX_NUMBERS = 2**24
"""Numbers that may be kept in memory, of inputs and of all draws' outputs; 64 MiB of float32."""
READING_BATCH = 256
"""Batch size for arrays: large, for evaluations are not compiled."""
STEP = 1e-3
"""Half the distance of the two points of a derivative; constants are stored such that 1 is a large change."""


class AveragedModel(Protocol):
    """What is asked of the model."""

    network: keras.Model
    optimizer: Any


@dataclass(frozen=True)
class Objective:
    """What the model fits its outputs to labels by.

    Args:
        heads: The likelihoods of its outputs.
        loss_weights: As given to `compile`.
    """

    heads: Heads
    loss_weights: Any = None

    @property
    def constants(self) -> list[keras.Variable]:
        """The likelihoods' own variables that are learned, each once."""
        found = [variable for head in self.heads.each() for variable in head.trainable_variables]
        return list({id(variable): variable for variable in found}.values())

    def __call__(self, y: Any, outputs: Any, sample_weight: Any, num_examples: int) -> Tensor:
        """The part of the negative ELBO per example that depends on the constants, in nats."""
        weights = self.heads.weights(sample_weight, outputs, self.loss_weights)
        nll = self.heads.nll(y, outputs, weights)
        return -elbo_parts(nll, self.heads.penalty(), num_examples, sample_weight=weights.of_examples).elbo


@dataclass(frozen=True)
class TrainingData:
    """What `fit` was given, and how much of it is for training.

    Args:
        x: Inputs, or a data set.
        y: Labels, or None with a data set.
        sample_weight: As given to `fit`.
        class_weight: As given to `fit`.
        batch_size: As given to `fit`.
        num_examples: Number of training examples; with `validation_split` the first ones of the arrays.
    """

    x: Any
    y: Any
    sample_weight: Any
    class_weight: Any
    batch_size: int | None
    num_examples: int

    @classmethod
    def given_to_fit(
        cls, x: Any, y: Any, batch_size: int | None, num_examples: int | None, arguments: Mapping[str, Any]
    ) -> TrainingData:
        """From some arguments of `fit` and a mapping of all others."""
        weights = arguments.get("sample_weight"), arguments.get("class_weight")
        return cls(x, y, *weights, batch_size, num_examples or 0)


def averages(optimizer: Any) -> bool:
    """Whether an optimizer, or one inside it, leaves an average of its iterates in the variables.

    Example:
    >>> averages(keras.optimizers.SGD(use_ema=True)), averages(keras.optimizers.SGD())
    (True, False)
    """
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    return bool(getattr(optimizer, "use_ema", False)) or any(averages(each) for each in inner if each is not None)


def refit_to_average(model: AveragedModel, objective: Objective, data: TrainingData) -> None:
    """Fits the likelihood's constants and the statistics of batch normalisation to the averaged weights.

    It does nothing where the optimizer does not average or nothing of the kind is learned.

    Args:
        model: After `fit`.
        objective: Its objective.
        data: What `fit` was given.

    Warns:
        UserWarning: if the data were read once and cannot be read again.
    """
    if not averages(model.optimizer):
        return
    constants = objective.constants
    normalizations = _normalizations_of(model.network)
    if not constants and not normalizations:
        return
    if is_read_once(data.x):
        names = ", ".join([variable.path for variable in constants] + [layer.name for layer in normalizations])
        warnings.warn(
            f"The optimizer averages the weights, and {names} cannot be fitted to their average: `x` is a "
            f"{type(data.x).__name__}, which can be read once only. The noise of predictions will be too large. Give "
            "fit arrays or a data set that can be read again.",
            stacklevel=4,
        )
        return
    batches = list(_batches(data, _takes_one_size(model.network)))
    evaluate = _Evaluation(model.network)
    with without_gradients(), without_local_kl(), counted():
        _refresh_statistics(evaluate, normalizations, [x for x, _, _ in batches])
        _refit_constants(evaluate, objective, batches, data.num_examples)


def _normalizations_of(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Layers whose moving statistics follow the training; with a momentum of 1 nothing can be told of a batch."""
    return [
        layer
        for layer in flatten_layers(network)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and layer.momentum < 1
    ]


def _takes_one_size(network: keras.Model) -> bool:
    """Whether the network takes batches of one size only."""
    inputs = keras.tree.flatten(input_structure(network))
    is_stateful = any(getattr(layer, "stateful", False) for layer in flatten_layers(network))
    return is_stateful or any(isinstance(each, keras.KerasTensor) and each.shape[0] is not None for each in inputs)


def _batches(data: TrainingData, is_batch_fixed: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Inputs, labels and sample weights of batches spread evenly over one pass, at most about `MAX_EXAMPLES`."""
    size = data.batch_size or DEFAULT_BATCH_SIZE
    size = size if is_batch_fixed else max(size, READING_BATCH)
    seen, every = 0, 0
    for number, batch in enumerate(training_batches(data.x, data.y, data.sample_weight, data.class_weight, size)):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        rows = num_rows(x)
        if not every:
            numbers = sum(_size(x)) + NUM_DRAWS * sum(_size(y))
            wanted = min(MAX_EXAMPLES, max(MAX_NUMBERS * rows // max(numbers, 1), 1))
            every = max(data.num_examples // wanted, 1)
        left = data.num_examples - seen
        if number % every == every // 2:  # in the middle of those it stands for, where the data are in order
            yield (x, y, weight) if rows <= left else _first_rows((x, y, weight), left)
        seen += rows
        if seen >= data.num_examples:
            return


def _size(values: Any) -> Iterator[int]:
    return (int(np.prod(leaf.shape)) for leaf in keras.tree.flatten(values) if leaf is not None)


def _first_rows(values: Any, count: int) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[:count], values)


class _Evaluation:
    """Evaluates a network as a pure function, so that neither its seeds nor its states change.

    Args:
        network: The network.
    """

    def __init__(self, network: keras.Model) -> None:
        self.network = network
        takes_training = "training" in inspect.signature(network.call).parameters

        def call(trainable: list[Tensor], others: list[Tensor], x: Any, training: bool) -> Any:
            kwargs = {"training": training} if takes_training else {}
            outputs, state = network.stateless_call(trainable, others, x, **kwargs)
            return outputs, keras.tree.map_structure(keras_mask, outputs), state  # masks do not survive a compiler

        self._call = {training: compiled(partial(call, training=training)) for training in (False, True)}

    def __call__(self, x: Any, training: bool, state: list[Tensor] | None = None) -> tuple[Any, list[Tensor]]:
        """Outputs with their masks, and the non-trainable variables after the call, from those before it."""
        trainable = [current_value(variable) for variable in self.network.trainable_variables]
        state = self.state() if state is None else state
        outputs, masks, state = self._call[training](trainable, state, x)
        return keras.tree.map_structure(with_mask, outputs, masks), state

    def state(self) -> list[Tensor]:
        """Values of the non-trainable variables."""
        return [current_value(variable) for variable in self.network.non_trainable_variables]


def _refresh_statistics(
    evaluate: _Evaluation, normalizations: Sequence[keras.layers.BatchNormalization], inputs: Sequence[Any]
) -> None:
    """Moving statistics become the means over these batches, each weighed by its examples.

    What a layer found in a batch is read off the step of its moving statistic, `(1 - momentum) (batch's - moving)`.
    """
    if not normalizations:
        return
    place = {id(variable): number for number, variable in enumerate(evaluate.network.non_trainable_variables)}
    before = evaluate.state()
    rows = [num_rows(x) for x in inputs]
    after = [evaluate(x, training=True)[1] for x in inputs]
    for layer in normalizations:
        for variable in (layer.moving_mean, layer.moving_variance):
            number = place[id(variable)]
            start = ops.convert_to_numpy(before[number]).astype("float64")
            steps = [ops.convert_to_numpy(state[number]) - start for state in after]
            step = np.average(steps, axis=0, weights=rows) / (1.0 - layer.momentum)
            variable.assign((start + step).astype("float32"))


def _refit_constants(evaluate: _Evaluation, objective: Objective, batches: Sequence[Any], num_examples: int) -> None:
    """Puts the likelihood's own variables where the ELBO is greatest, on stored draws of the network's outputs."""
    constants = objective.constants
    if not constants:
        return
    draws, state = [], None
    for x, y, weight in batches:
        for _ in range(NUM_DRAWS):
            outputs, state = evaluate(x, training=False, state=state)
            draws.append((y, outputs, weight))
    groups = _joined(draws)
    rows = [num_rows(outputs) for _, outputs, _ in groups]
    masks = [keras.tree.map_structure(keras_mask, outputs) for _, outputs, _ in groups]

    def losses(values: list[Tensor], groups: list[Any], masks: list[Any]) -> list[Tensor]:
        with keras.StatelessScope(state_mapping=list(zip(constants, values, strict=True))):
            return [
                objective(y, keras.tree.map_structure(with_mask, outputs, mask), weight, num_examples)
                for (y, outputs, weight), mask in zip(groups, masks, strict=True)
            ]

    compiled_losses = compiled(losses)
    shapes = [tuple(variable.shape) for variable in constants]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def values_of(flat: np.ndarray) -> list[Tensor]:
        parts = np.split(flat.astype("float32"), ends[:-1])
        return [ops.convert_to_tensor(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]

    def loss(flat: np.ndarray) -> float:
        return float(
            np.average([float(each) for each in compiled_losses(values_of(flat), groups, masks)], weights=rows)
        )

    start = np.concatenate([ops.convert_to_numpy(variable).ravel() for variable in constants]).astype("float64")
    for variable, value in zip(constants, values_of(_minimum(loss, start)), strict=True):
        variable.assign(value)


def _joined(draws: Sequence[tuple[Any, Any, Any]]) -> list[tuple[Any, Any, Any]]:
    """Labels, outputs and weights as few large batches: one for each shape of an example's outputs."""
    groups: dict[Any, list[tuple[Any, Any, Any]]] = defaultdict(list)
    for draw in draws:
        groups[tuple(tuple(leaf.shape[1:]) for leaf in keras.tree.flatten(draw[1]))].append(draw)
    return [tuple(_concatenated(parts) for parts in zip(*group, strict=True)) for group in groups.values()]


def _concatenated(parts: Sequence[Any]) -> Any:
    """Structures joined along their first axis, with the masks that Keras attached to their tensors."""

    def join(*leaves: Any) -> Any:
        if leaves[0] is None:
            return None
        tensor = ops.concatenate([ops.convert_to_tensor(leaf) for leaf in leaves], axis=0)
        masks = [keras_mask(leaf) for leaf in leaves]
        return tensor if masks[0] is None else with_mask(tensor, ops.concatenate(masks, axis=0))

    return keras.tree.map_structure(join, *parts)


def _minimum(function: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Where a function of a few numbers is least, near `start`, and `start` where nothing better is found.

    By quasi-Newton steps on central differences: constants are few, and each backend has derivatives of its own.
    """
    from scipy.optimize import minimize

    steps = STEP * np.eye(len(start))

    def gradient(at: np.ndarray) -> np.ndarray:
        return np.array([(function(at + step) - function(at - step)) / (2 * STEP) for step in steps])

    found = minimize(function, start, jac=gradient, method="L-BFGS-B")
    return found.x if found.fun < function(start) else start
