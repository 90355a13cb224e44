"""Updates of several micro-batches, whose number doubles when their noise exceeds the signal.

A step of Keras takes the gradient of one batch, here a micro-batch. `MicroBatches` hands the mean of k of them to the
optimizer inside it. Two gradients g, g' of one point with independent noise, their mean G, have

    E <g, g'> = |G|^2,     E |g - g'|^2 / 2 = tr(covariance of g)

which are the signal and the noise. Norms weigh each number by `1 / sqrt(v)`, v its mean square in the optimizer, as its
steps do; where the optimizer has none (SGD) by 1. Pairs are neighbours within an update. While k is 1 they are
neighbouring updates, so that what a step changes in the gradient counts as noise. Each micro-batch has rows and draws
of its own: more of them quieten the noise of the data and that of the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bdl.keras_internals import current_value, second_moments
from bdl.random import Tensor


class MicroBatches(keras.optimizers.Optimizer):
    """An optimizer around another one, which is given the mean gradient of k micro-batches.

    k doubles in the compiled step, where the noise of an update exceeds its signal: `noise / k > threshold * signal`,
    as means over `interval` pairs of gradients at least. Nothing is compiled anew.

    Args:
        inner_optimizer: The optimizer that moves the variables.
        most: Largest k.
        threshold: Ratio of noise and signal above which k doubles.
        interval: Pairs of gradients between two decisions.
        left_out: Variables that count neither as noise nor as signal.
        name: Name of the optimizer.

    Sources: De, Yadav, Jacobs and Goldstein 2017, "Automated inference with adaptive batches", algorithm 1;
    McCandlish, Kaplan, Amodei et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162, section 2.

    Example:
    >>> weight = keras.Variable([0.0])
    >>> optimizer = MicroBatches(keras.optimizers.SGD(1.0), most=2, interval=2)
    >>> for gradient in (1.0, -2.0, 1.5, 1.0, 3.0):
    ...     optimizer.apply([ops.convert_to_tensor([gradient])], [weight])
    >>> optimizer.number, [float(value) for value in keras.ops.convert_to_numpy(weight)]
    (2, [-2.5])
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        most: int = 2**20,
        threshold: float = 1.0,
        interval: int = 50,
        left_out: Sequence[keras.Variable] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self._left_out = frozenset(id(variable) for variable in left_out)
        self.inner_optimizer = inner_optimizer
        self.most, self.threshold, self.interval = most, threshold, interval

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the variables, once: a sum and the last gradient for each of the model's."""
        if self.built:
            return
        self._number = self._scalar("number", "int32", 1)
        self._position = self._scalar("position", "int32", 0)
        self._pairs = self._scalar("pairs", "float32", 0.0)
        self._products = self._scalar("products", "float32", 0.0)
        self._squares = self._scalar("squares", "float32", 0.0)
        self._signal = self._scalar("signal", "float32", float("nan"))
        self._noise = self._scalar("noise", "float32", float("nan"))
        self._has_last = self._scalar("has_last", "float32", 0.0)
        self._sums, self._last = self.add_optimizer_variables(variables, ["sum", "last"])
        self.inner_optimizer.build(variables)
        super().build(variables)

    def _scalar(self, name: str, dtype: str, value: float) -> keras.Variable:
        initializer = keras.initializers.Constant(value)
        return self.add_variable(shape=(), dtype=dtype, initializer=initializer, name=name)

    @property
    def variables(self) -> list[keras.Variable]:
        """Its own and those of the optimizer inside."""
        return super().variables + self.inner_optimizer.variables

    @property
    def number(self) -> int:
        """Micro-batches of the present update, k."""
        return int(ops.convert_to_numpy(self._number)) if self.built else 1

    @property
    def noise_scale(self) -> float:
        """Noise of a micro-batch by the signal, at the last decision: the k that makes them equal; NaN before it."""
        if not self.built:
            return float("nan")
        noise, signal = (float(ops.convert_to_numpy(each)) for each in (self._noise, self._signal))
        return noise / signal if signal > 0.0 else float("nan") if noise != noise else float("inf")

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Counts a micro-batch; the last of an update moves the variables.

        Args:
            grads: Gradients of the micro-batch.
            trainable_variables: Their variables; None takes those that it was built with.
        """
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        gradients = [
            ops.zeros_like(current_value(variable)) if grad is None else ops.convert_to_tensor(grad)
            for variable, grad in zip(variables, grads, strict=True)
        ]
        self._compare(
            {place: gradient for place, gradient in enumerate(gradients) if id(variables[place]) not in self._left_out}
        )
        for total, last, gradient in zip(self._sums, self._last, gradients, strict=True):
            total.assign_add(gradient)
            last.assign(gradient)
        self._position.assign_add(1)
        self._has_last.assign(1.0)
        is_whole = ops.greater_equal(current_value(self._position), current_value(self._number))
        if keras.backend.backend() == "jax":
            self._update_if(is_whole, variables)
        else:
            ops.cond(is_whole, lambda: self._update(variables), lambda: None)

    def _compare(self, gradients: dict[int, Tensor]) -> None:
        """Adds the pair of the last two gradients, by the place of their variables, to signal and noise."""
        product, square = ops.zeros(()), ops.zeros(())
        moments = second_moments(self.inner_optimizer)
        for place, gradient in gradients.items():
            one, other = (ops.cast(each, "float32") for each in (gradient, current_value(self._last[place])))
            weight = None if moments is None or moments[place] is None else _inverse_root(moments[place])
            both, apart = one * other, 0.5 * (one - other) ** 2
            product += ops.sum(both if weight is None else weight * both)
            square += ops.sum(apart if weight is None else weight * apart)
        is_within = ops.logical_or(current_value(self._position) > 0, current_value(self._number) == 1)
        is_pair = ops.logical_and(is_within, current_value(self._has_last) > 0)
        is_sound = ops.logical_and(ops.isfinite(product), ops.isfinite(square))  # not so under a loss scale too large
        counts = ops.logical_and(is_pair, is_sound)
        for total, value in ((self._pairs, 1.0), (self._products, product), (self._squares, square)):
            total.assign_add(ops.where(counts, value, 0.0))

    def _update(self, variables: list[keras.Variable]) -> None:
        """Moves the variables, and decides on k."""
        number = current_value(self._position)
        means = [current_value(total) / ops.cast(number, total.dtype) for total in self._sums]
        self.inner_optimizer.apply(means, variables)
        for total in self._sums:
            total.assign(ops.zeros_like(current_value(total)))
        self._position.assign(0)
        self._decide()

    def _decide(self) -> None:
        pairs, number = current_value(self._pairs), current_value(self._number)
        is_due = pairs >= self.interval
        means = [current_value(total) / ops.maximum(pairs, 1.0) for total in (self._products, self._squares)]
        is_noisy = means[1] > self.threshold * means[0] * ops.cast(number, "float32")
        is_room = 2 * number <= self.most
        grows = ops.logical_and(is_due, ops.logical_and(is_noisy, is_room))
        self._number.assign(ops.where(grows, 2 * number, number))
        for kept, mean in zip((self._signal, self._noise), means, strict=True):
            kept.assign(ops.where(is_due, mean, current_value(kept)))
        for total in (self._pairs, self._products, self._squares):
            total.assign(ops.where(is_due, 0.0, current_value(total)))

    def _update_if(self, is_whole: Tensor, variables: list[keras.Variable]) -> None:
        """The same on JAX, whose branches must be functions of values."""
        changed = [*variables, *self.variables]
        values = [current_value(each) for each in changed]

        def updated(values: list[Tensor]) -> list[Tensor]:
            with keras.StatelessScope(state_mapping=list(zip(changed, values, strict=True))):
                self._update(variables)
                return [current_value(each) for each in changed]

        for variable, value in zip(changed, ops.cond(is_whole, lambda: updated(values), lambda: values), strict=True):
            variable.assign(value)

    @property
    def learning_rate(self) -> Any:
        """That of the optimizer inside."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """Updates so far."""
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Tensor) -> Tensor:
        """As the optimizer inside does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """As the optimizer inside does."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def save_own_variables(self, store: Any) -> None:
        """As the optimizer inside does: a file that is written during a fit has the optimizer of `compile`."""
        self.inner_optimizer.save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        """As the optimizer inside does."""
        self.inner_optimizer.load_own_variables(store)


def _inverse_root(moment: keras.Variable) -> Tensor:
    """`1 / sqrt(v)`; numbers without a gradient so far do not count."""
    value = ops.cast(current_value(moment), "float32")
    return ops.where(value > 0.0, ops.rsqrt(ops.where(value > 0.0, value, 1.0)), 0.0)
