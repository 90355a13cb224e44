"""Natural gradients: steps in the natural parameters of a posterior, down the gradient in its mean parameters.

The gradients that Keras hands to an optimizer are those of the loss per row. With N rows, `L = N loss` is the negative
ELBO. For a Gaussian of mean m and covariance `S = T T^T`, T lower triangular, the step of the rate r is, in its
precision P and its mean,

    P <- P + 2 r dL/dS,     m <- m - r P_new^-1 dL/dm

By the chain rule (Murray 2016, "Differentiation of the Cholesky decomposition", arXiv 1602.07527) it needs gradients in
T alone. In coordinates in which the Gaussian is a standard normal the new precision is

    M = I + r sym(T^T dL/dT) = U U^T,     T_new = T U^-T,     m_new = m - r T_new T_new^T dL/dm

where sym mirrors the lower triangle, and U is upper triangular. At r = 1 one step leads to the posterior where that is
a Gaussian. An eigenvalue of M below 1/16 becomes 1/16: M has a root whatever the gradient is, and a standard deviation
grows fourfold at most in a step. The step does not depend on affine coordinates: those of a guide will do.

Parameters of other exponential families take the step `values <- values - r dL/d(mean parameters)`; none falls to less
than 1/16 of itself in a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.keras_internals import current_value, flatten_layers, is_concrete, num_replicas
from bdl.protocols import GaussianVariables, HasNaturalParameters, NaturalVariables
from bdl.random import Tensor

LEAST = 1 / 16
"""Part of itself to which a precision, or a parameter, falls at most in a step."""

Values = Sequence[Tensor]


@dataclass(frozen=True)
class _Parts:
    """The variables of a model, held where Keras does not count them as the optimizer's own.

    Args:
        blocks: Those that belong together.
        rest: All others.
    """

    blocks: tuple[GaussianVariables | NaturalVariables, ...] = ()
    rest: tuple[keras.Variable, ...] = ()


@keras.saving.register_keras_serializable(package="bdl")
class NaturalGradient(keras.optimizers.Optimizer):
    """Natural gradient steps for the posteriors of a model, and an ordinary optimizer for all its other variables.

    It knows mean-field and full-rank Gaussian guides and conjugate guides of `bdl.svi`, and layers whose weights have
    the posterior `MeanFieldNormal`. Compile `SVI` or `VariationalModel` with it: the model tells it which variables
    belong together, and N. A conjugate model reaches its posterior in one step of the whole data at the rate 1, if the
    expectations are exact and it is at most four times as wide as the guide was before. `SVI(num_samples="cubature")`
    makes them exact for Gaussian guides, and conjugate guides have them so. Otherwise, and in batches, let the rate
    fall (`RobbinsMonro`), or take a constant one of 0.1 or less and the average of the iterates.

    With a temperature T below 1 its fixed point is the tempered posterior, which it approaches as `(1 - r T)^t`.

    Args:
        learning_rate: The rate r, a number, a schedule or a function as in Keras. 1 is a whole step.
        optimizer: Keras optimizer, or its name, for variables that are no posterior's: weights of networks, parameters
            of likelihoods and of priors, guides of other families. It has a learning rate of its own.
        name: Name of the optimizer.

    Raises:
        ValueError: if `optimizer` is none; when it is built, if no model has told it what it trains, or a model is
            distributed over devices; when N is not known.

    Sources: Hoffman, Blei, Wang and Paisley 2013, "Stochastic variational inference"; Khan and Rue 2023, "The Bayesian
    learning rule", arXiv 2107.04562, section 3.

    Example:
    >>> from bdl.svi import SVI, Flat, Global, Observed
    >>> class Gauss(Flat):
    ...     def __init__(self, mean): super().__init__(); self.mean = mean
    ...     def log_prob(self, value): return -0.5 * (value - self.mean) ** 2
    >>> def story(data):
    ...     level = yield Global("level", Gauss(0.0))
    ...     yield Observed("y", Gauss(level), data["y"])
    >>> model = SVI(story, "full_rank", num_samples="cubature", seed=0)
    >>> model.compile(NaturalGradient(1.0))
    >>> history = model.fit({"y": np.full(20, 2.1)}, batch_size="all", steps=1, verbose=0)
    >>> mean = model.guide_of("level").distribution().mean
    >>> round(float(mean[0]), 3)  # 20 * 2.1 / (20 + 1)
    2.0
    """

    def __init__(self, learning_rate: Any = 1.0, optimizer: Any = "adam", name: str | None = None) -> None:
        super().__init__(float(learning_rate) if isinstance(learning_rate, int) else learning_rate, name=name)
        try:
            self.optimizer = keras.optimizers.get(optimizer)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`optimizer` must be a Keras optimizer or the name of one, not {optimizer!r}. Pass 'adam'."
            ) from error
        self._model: Callable[[], Any] = lambda: None
        self._parts = _Parts()
        self._size = self.add_variable(shape=(), initializer="zeros", dtype="float32", name="num_examples")

    @property
    def num_examples(self) -> int:
        """Number of rows N by which gradients per row are multiplied; 0 before a model has told it."""
        return int(ops.convert_to_numpy(self._size))

    def read_model(self, model: Any) -> None:
        """Takes from a model which variables belong together, and N if it is known; models call it themselves.

        Args:
            model: `SVI`, `VariationalModel`, or another model with layers that have natural parameters, and
                `num_examples`.
        """
        self._model = weakref.ref(model)
        if model.num_examples is not None:
            self._size.assign(model.num_examples)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the variables, once.

        Raises:
            ValueError: if no model has told what it trains, or it is distributed over devices.
        """
        if self.built:
            return
        model = self._model()
        if model is None:
            raise ValueError(
                "NaturalGradient must know the model that it trains, which it was not told. Compile SVI or "
                "VariationalModel with it, or call optimizer.read_model(model) before the first step."
            )
        if num_replicas() > 1:
            raise ValueError("NaturalGradient must be on one device, not on several.")
        known = {id(variable) for variable in variables}
        layers = [layer for layer in flatten_layers(model) if isinstance(layer, HasNaturalParameters)]
        blocks = [block for layer in layers for block in layer.natural_variables()]
        blocks = [block for block in blocks if all(id(one) in known for one in block.variables)]
        taken = {id(one) for block in blocks for one in block.variables}
        self._parts = _Parts(tuple(blocks), tuple(one for one in variables if id(one) not in taken))
        if self._parts.rest:
            self.optimizer.build(list(self._parts.rest))
        super().build(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """Its own and those of the ordinary optimizer."""
        return super().variables + self.optimizer.variables

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Takes a step.

        Args:
            grads: Gradients of the loss per row.
            trainable_variables: Their variables; None takes those that it was built with.

        Raises:
            ValueError: if N is not known.
        """
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        gradients = {id(one): grad for one, grad in zip(variables, grads, strict=True) if grad is not None}
        size = current_value(self._size)
        if is_concrete(size) and float(size) == 0:
            raise ValueError(
                "`num_examples` must be known to NaturalGradient, which was not told. Set it in the model."
            )
        for block in self._parts.blocks:
            if any(id(one) in gradients for one in block.variables):
                self._step(block, gradients, size)
        rest = [(gradients[id(one)], one) for one in self._parts.rest if id(one) in gradients]
        if rest:
            self.optimizer.apply(*zip(*rest, strict=True))
        self._iterations.assign_add(1)

    def _step(self, block: GaussianVariables | NaturalVariables, gradients: dict[int, Tensor], size: Tensor) -> None:
        """Moves the variables of a block."""
        values = [current_value(one) for one in block.variables]
        dtype = values[-1].dtype
        rate = ops.cast(self._get_current_learning_rate(), dtype)
        zeros = (ops.zeros_like(value) for value in values)
        total = [
            ops.cast(size, dtype) * ops.cast(gradients.get(id(one), zero), dtype)
            for one, zero in zip(block.variables, zeros, strict=True)
        ]
        values = [ops.cast(value, dtype) for value in values]
        if isinstance(block, NaturalVariables):
            moved: Values = [natural_step(values[0], total[0], rate)]
        elif block.below is None:
            moved = diagonal_step(block, values, total, rate)
        else:
            moved = full_step(block, values, total, rate)
        for variable, value in zip(block.variables, moved, strict=True):
            variable.assign(ops.cast(value, variable.dtype))

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Gives other variables their averages, where the ordinary optimizer keeps some (`use_ema`)."""
        if self._parts.rest:
            self.optimizer.finalize_variable_values(list(self._parts.rest))

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        config = super().get_config()
        inner = keras.saving.serialize_keras_object(self.optimizer)
        return {"name": config["name"], "learning_rate": config["learning_rate"], "optimizer": inner}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> NaturalGradient:
        """Builds the optimizer again."""
        config = dict(config)
        for key in ("learning_rate", "optimizer"):
            if isinstance(config[key], dict):
                config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(**config)


@keras.saving.register_keras_serializable(package="bdl")
class RobbinsMonro(keras.optimizers.schedules.LearningRateSchedule):
    """The rate `(delay + step)^-forgetting`, which falls slowly enough to arrive and fast enough to come to rest.

    Args:
        forgetting: From above 0.5 to 1. At 1 with the delay 1 a conjugate posterior is the mean over all batches so
            far; less forgets the first batches sooner.
        delay: Positive; more takes smaller steps at the start. At 1 the first step is a whole one.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Hoffman et al. 2013, "Stochastic variational inference", eq. 26; Robbins and Monro 1951.

    Example:
    >>> [float(RobbinsMonro(forgetting=1.0)(step)) for step in (0, 1, 3)]
    [1.0, 0.5, 0.25]
    """

    def __init__(self, forgetting: float = 0.7, delay: float = 1.0) -> None:
        if not 0.5 < forgetting <= 1.0:
            raise ValueError(f"`forgetting` must be above 0.5 and at most 1, not {forgetting!r}. Pass 0.7.")
        if not delay > 0.0:
            raise ValueError(f"`delay` must be positive, not {delay!r}. Pass 1.0.")
        self.forgetting, self.delay = float(forgetting), float(delay)

    def __call__(self, step: Any) -> Tensor:
        """The rate of a step, of which 0 is the first."""
        return ops.power(self.delay + ops.cast(step, "float32"), -self.forgetting)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {"forgetting": self.forgetting, "delay": self.delay}


def natural_step(values: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    """A step of positive parameters that are natural ones up to constants.

    Args:
        values: The parameters.
        gradient: Of the negative ELBO in the mean parameters, total.
        rate: r.

    Example:
    >>> np.asarray(natural_step(np.ones(2), np.array([-3.0, 5.0]), 1.0))
    array([4.    , 0.0625])
    """
    moved, least = values - rate * gradient, LEAST * values
    return ops.where(moved < least, least, moved)


def diagonal_step(block: GaussianVariables, values: Values, gradients: Values, rate: Tensor) -> Values:
    """A step of independent Gaussians.

    Args:
        block: What the variables are.
        values: Of `mean` and `rho`.
        gradients: Of the negative ELBO in these, total.
        rate: r.
    """
    mean, rho = values
    scale = block.scale(rho)
    precision = 1.0 + rate * gradients[1] * scale / block.slope(rho)
    precision = ops.where(precision < LEAST, ops.full_like(precision, LEAST), precision)
    moved = scale / ops.sqrt(precision)
    return mean - rate * moved**2 * gradients[0], block.rho_of(moved)


def full_step(block: GaussianVariables, values: Values, gradients: Values, rate: Tensor) -> Values:
    """A step of a Gaussian with all correlations.

    Args:
        block: What the variables are.
        values: Of `mean`, `rho` and `below`.
        gradients: Of the negative ELBO in these, total.
        rate: r.
    """
    mean, rho, below = values
    unit = ops.eye(mean.shape[0], dtype=mean.dtype)
    factor = ops.tril(below, k=-1) + block.scale(rho) * unit
    slope = ops.tril(gradients[2], k=-1) + gradients[1] / block.slope(rho) * unit
    product = ops.transpose(factor) @ slope
    curvature = ops.tril(product) + ops.transpose(ops.tril(product, k=-1))
    root = _upper_root(unit + rate * curvature)
    moved = ops.transpose(ops.solve_triangular(root, ops.transpose(factor), lower=False))
    mean = mean - rate * ops.sum(moved * ops.sum(moved * gradients[0][:, None], axis=0), axis=1)
    return mean, block.rho_of(ops.diagonal(moved)), ops.tril(moved, k=-1)


def _upper_root(matrix: Tensor) -> Tensor:
    """U with `U U^T` the matrix, whose eigenvalues are raised where they are too small; NaN where it holds some."""
    sound = ops.all(ops.isfinite(matrix))
    matrix = ops.where(sound, matrix, ops.eye(matrix.shape[0], dtype=matrix.dtype))
    values, vectors = ops.eigh(matrix)
    raised = (vectors * ops.where(values < LEAST, ops.full_like(values, LEAST), values)) @ ops.transpose(vectors)
    matrix = ops.where(ops.min(values) < LEAST, raised, matrix)  # left as it is where it may be, to the last digit
    root = ops.flip(ops.cholesky(ops.flip(matrix)))
    return ops.where(sound, root, float("nan"))
