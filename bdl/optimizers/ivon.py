"""IVON: an optimizer whose own estimate of the Hessian is the posterior of a network's weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl import random
from bdl.keras_internals import current_value, stored_value, without_gradients
from bdl.likelihoods.base import LEARNED_SPEED
from bdl.random import Tensor

_step: ContextVar[dict[Any, Tensor] | None] = ContextVar("step", default=None)
"""The noise of the training step that is being taken, by Keras' keys of the variables."""
_state: ContextVar[dict[int, Tensor] | None] = ContextVar("state", default=None)
"""Values of an optimizer's variables, by their `id`, where a compiled function of JAX has them as arguments."""


@keras.saving.register_keras_serializable(package="bdl")
class IVON(keras.optimizers.Optimizer):
    """Improved variational online Newton: trains the mean and the scale of a Gaussian posterior at the cost of Adam.

    Every trainable weight of a `bdl.VariationalModel` around a plain network, without variational layers, gets the
    posterior `q = N(m, s^2)` with

        s^2 = T / (N (h + d)),    d = T / (N prior_scale^2)

    where the variable itself is the mean m, h is the optimizer's running estimate of the mean Hessian of the loss, N
    is the model's number of examples and T its `kl_weight`. A step takes the gradient g at `m + s e`, one draw of the
    weights for the batch, and with `h' = g e / s` (the reparameterized estimate of the Hessian)

        momentum <- beta_1 momentum + (1 - beta_1) g
        h        <- beta_2 h + (1 - beta_2) h' + (1 - beta_2)^2 (h - h')^2 / (2 (h + d))
        m        <- m - learning_rate (h_0 + d) (momentum / (1 - beta_1^t) + d m) / (h + d)

    The noise e is recomputed from `seed` and the count of steps. So there are two numbers beside each weight, as in
    Adam, and a file of the model holds the posterior with the optimizer. The model's `kl` is KL(q || N(0,
    prior_scale^2)) in nats; its gradient is the update's own, and does not enter it twice. With IVON the model's
    default T is 1 throughout. Weights of the likelihood, such as a learned scale, are drawn in training and evaluation,
    and at their mean in predictions. Likelihoods of bdl store them divided by 10: the formulas hold for what they stand
    for, ten times the variable, with this prior and h_0.

    Clipping (`clipnorm`, `clipvalue`, `global_clipnorm`) acts on g, and so lowers the estimate of the Hessian;
    `clip_radius` bounds the update alone. Regularizers are taken at the mean. With `gradient_accumulation_steps` all
    batches of an update share the draw.

    Args:
        learning_rate: Number or schedule. A fraction of a Newton step at the start: .03 to .3 where Adam takes 1e-3.
        prior_scale: Positive standard deviation of the prior N(0, prior_scale^2) of each weight. It takes the place of
            weight decay.
        beta_1: Momentum of the gradient, from 0 up to 1.
        beta_2: Momentum of the Hessian, between 0 and 1. Its noise raises h where `1 - beta_2` is not far below
            2 * batch / N.
        initial_hessian: Positive h_0: the scale begins at `1 / sqrt(N (h_0 + d))`.
        clip_radius: Positive bound of each entry of the update, before the learning rate.
        seed: Integer that makes the noise reproducible, or None.
        name: Name of the optimizer.
        **kwargs: Other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument is out of range, `weight_decay` is given, or the optimizer is to take a step outside
            the training of a `VariationalModel`, where no noise was drawn.

    Source: Shen et al. 2024, "Variational learning is effective for large deep networks", arXiv 2402.17641,
    algorithm 1.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), optimizer_posterior=True)
    >>> model.compile(bdl.optimizers.IVON(0.1, seed=0))
    >>> history = model.fit(np.ones((20, 4)), np.zeros(20, int), epochs=2, verbose=0)
    >>> model.predict_distribution(np.ones((2, 4)), seed=0).epistemic.shape
    (2,)
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        prior_scale: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.9999,
        initial_hessian: float = 1.0,
        clip_radius: float = math.inf,
        seed: int | None = None,
        name: str = "ivon",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("weight_decay"):
            raise ValueError(
                f"`weight_decay` must be None, not {kwargs['weight_decay']!r}: the prior takes its place. Give "
                "prior_scale=1 / sqrt(N * weight_decay)."
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.prior_scale = _positive("prior_scale", prior_scale)
        self.beta_1 = _fraction("beta_1", beta_1, includes_zero=True)
        self.beta_2 = _fraction("beta_2", beta_2)
        self.initial_hessian = _positive("initial_hessian", initial_hessian)
        self.clip_radius = _positive("clip_radius", clip_radius, is_finite=False)
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)
        self.hessians: list[keras.Variable] = []
        self._momenta: list[keras.Variable] = []
        self._speeds: dict[int, float] = {}  # by the variables' id, where a number is stored divided by its speed
        # N / T; a variable, so that it is saved, and compiled steps follow it.
        self.sample_size = self.add_variable((), "zeros", "float32", name="sample_size")

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the variables of the optimizer."""
        if self.built:
            return
        super().build(variables)
        self.hessians = [
            self.add_variable_from_reference(
                each, "hessian", keras.initializers.Constant(self.initial_hessian * self._speed(each) ** 2)
            )
            for each in variables
        ]
        self._momenta = self.add_optimizer_variables(variables, "momentum")

    @property
    def means(self) -> list[keras.Variable]:
        """The variables with a posterior: they hold the means, in the order of `hessians`."""
        return list(self._trainable_variables)

    @property
    def has_posterior(self) -> bool:
        """Whether there is a posterior: it has variables, and knows N."""
        stored = stored_value(self.sample_size)
        return bool(self.built and (stored is None or float(stored) > 0))  # None while Keras trains on JAX

    def read_model(self, model: Any) -> None:
        """Takes N and T from a model, if it knows them; models call it themselves, when they are compiled and trained.

        Args:
            model: `VariationalModel`, or another object with `num_examples` and a positive `temperature`. A
                `likelihood` tells its weights.
        """
        for likelihood in keras.tree.flatten(getattr(model, "likelihood", None)):
            self._speeds.update({id(each): LEARNED_SPEED for each in getattr(likelihood, "trainable_variables", ())})
        if model.num_examples is not None and model.temperature is not None:
            self.sample_size.assign(model.num_examples / model.temperature)

    @property
    def decay(self) -> Tensor:
        """d, the share of the prior in the curvature."""
        return 1.0 / (_read(self.sample_size) * self.prior_scale**2)

    def scales(self) -> list[Tensor]:
        """Posterior standard deviations, in the order of `means`."""
        size, decay = _read(self.sample_size), self.decay
        return [
            ops.rsqrt(size * (ops.cast(_read(hessian), "float32") + decay * self._speed(mean) ** 2))
            for hessian, mean in zip(self.hessians, self.means, strict=True)
        ]

    def kl_divergence(self) -> Tensor:
        """Divergence of the posterior from the prior: scalar, total, in nats."""
        total = ops.zeros((), dtype="float32")
        for mean, scale in zip(self.means, self.scales(), strict=True):
            prior_scale = self.prior_scale / self._speed(mean)
            ratio = ops.square(scale / prior_scale)
            shift = ops.square(ops.cast(_read(mean), "float32") / prior_scale)
            total = total + 0.5 * ops.sum(ratio + shift - 1.0 - ops.log(ratio))
        return total

    def noise(self, key: Tensor) -> list[Tensor]:
        """What a draw of the weights adds to the means, for a key of `bdl.random`."""
        return [
            scale * random.normal(tuple(mean.shape), random.fold_in(key, number))
            for number, (mean, scale) in enumerate(zip(self.means, self.scales(), strict=True))
        ]

    def drawn(self, noise: Sequence[Tensor]) -> dict[int, Tensor]:
        """Values of a draw of the weights by the variables' `id`; gradients with respect to them go to the means."""
        found = {}
        for mean, each in zip(self.means, noise, strict=True):
            value = current_value(mean)
            found[id(mean)] = value + ops.cast(each, value.dtype)
        return found

    @contextlib.contextmanager
    def step(self, values: Any = None) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Within this context a training step may be taken, at the draw of the weights whose noise it gives.

        Args:
            values: Context in which the optimizer's variables have their values; None takes their own.

        Yields:
            The noise, and the divergence of the posterior before the step. Neither has a gradient.
        """
        with without_gradients(), contextlib.nullcontext() if values is None else values:
            noise = self.noise(random.fold_in(random.draw_key(self.seed), self._updates()))
            kl = self.kl_divergence()
        token = _step.set({self._var_key(mean): each for mean, each in zip(self.means, noise, strict=True)})
        try:
            yield noise, kl
        finally:
            _step.reset(token)

    def _speed(self, variable: keras.Variable) -> float:
        return self._speeds.get(id(variable), 1.0)

    def _updates(self) -> Tensor:
        """The count of updates, which stays while gradients of several steps are collected."""
        steps, collected = _read(self._iterations), self.gradient_accumulation_steps
        return ops.cast(ops.floor_divide(steps, collected) if collected else steps, "int32")

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates a mean, and the Hessian and momentum beside it; the paper's algorithm 1, in its order."""
        noise = (_step.get() or {}).get(self._var_key(variable))
        if noise is None:
            raise ValueError(
                "`optimizer` must not be IVON for this model: its step needs the gradient at drawn weights, and no "
                "weights were drawn. Train bdl.VariationalModel(network, likelihood, optimizer_posterior=True), and "
                "compile that with IVON."
            )
        number = self._get_variable_index(variable)
        hessian, momentum = self.hessians[number], self._momenta[number]
        gradient, rate = ops.cast(gradient, "float32"), ops.cast(learning_rate, "float32")
        speed = self._speed(self.means[number])  # TensorFlow gives its own variable
        h, size, decay = ops.cast(hessian, "float32"), ops.cast(self.sample_size, "float32"), self.decay * speed**2
        estimate = gradient * noise * size * (h + decay)
        change = (1.0 - self.beta_2) * (estimate - h)
        h = h + change + 0.5 * ops.square(change) / (h + decay)
        average = self.beta_1 * ops.cast(momentum, "float32") + (1.0 - self.beta_1) * gradient
        steps = ops.cast(ops.convert_to_tensor(self.iterations) + 1, "float32")
        unbiased = average / (1.0 - ops.power(self.beta_1, steps)) if self.beta_1 else average
        mean = ops.cast(variable, "float32")
        update = (unbiased + decay * mean) / (h + decay)
        if math.isfinite(self.clip_radius):
            update = ops.clip(update, -self.clip_radius / speed, self.clip_radius / speed)
        self.assign(hessian, ops.cast(h, hessian.dtype))
        self.assign(momentum, ops.cast(average, momentum.dtype))
        step = rate * (self.initial_hessian + self.decay) * update
        self.assign_sub(variable, ops.cast(step, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        names = ("prior_scale", "beta_1", "beta_2", "initial_hessian", "clip_radius", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@contextlib.contextmanager
def optimizer_values(variables: Sequence[keras.Variable], values: Sequence[Tensor]) -> Iterator[None]:
    """Within this context posteriors are made from these values of an optimizer's variables, in place of their own."""
    token = _state.set({id(variable): value for variable, value in zip(variables, values, strict=True)})
    try:
        yield
    finally:
        _state.reset(token)


def _read(variable: keras.Variable) -> Tensor:
    value = (_state.get() or {}).get(id(variable))
    return current_value(variable) if value is None else value


def _positive(name: str, value: Any, is_finite: bool = True) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not value > 0 or (is_finite and not math.isfinite(value)):
        raise ValueError(f"`{name}` must be a positive number, not {value!r}.")
    return float(value)


def _fraction(name: str, value: Any, includes_zero: bool = False) -> float:
    if not isinstance(value, (int, float)) or not (0 < value < 1 or (includes_zero and value == 0)):
        raise ValueError(
            f"`{name}` must be a number {'from 0 up to' if includes_zero else 'between 0 and'} 1, not {value!r}."
        )
    return float(value)
