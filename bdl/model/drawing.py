"""What a model does whose posterior is its optimizer's: draws of a plain network's weights in its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.estimators.stateless import evaluated_at
from bdl.keras_internals import current_value, flatten_layers, innermost, is_concrete, is_one_device, is_tracing
from bdl.likelihoods.heads import Heads
from bdl.optimizers.drawn_network import DrawnNetwork, next_seed
from bdl.optimizers.ivon import IVON, optimizer_values
from bdl.protocols import HasKL
from bdl.random import Tensor
from bdl.schedules import KLSchedule


@dataclass(frozen=True, eq=False)
class _Draw:
    """One draw of the weights.

    Args:
        noise: What it adds to each mean of the optimizer.
        kl: Of the posterior, in nats.
    """

    noise: list[Tensor]
    kl: Tensor


@dataclass(frozen=True, eq=False)
class _Kept:
    """Holds a network that is part of no model: Keras would track it, and save the weights in it under its name."""

    network: DrawnNetwork


_draw: ContextVar[_Draw | None] = ContextVar("draw", default=None)
"""The draw of the step that is being taken."""


class DrawsWeights:
    """Mixin of a model whose weights' posterior may be its optimizer's; see `bdl.optimizers.IVON`."""

    network: keras.Model
    optimizer: Any
    optimizer_posterior: bool
    test_function: Any
    _heads: Heads

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drawn: _Kept | None = None

    @property
    def posterior_optimizer(self) -> IVON | None:
        """The optimizer that holds the posterior of the weights; None without one, or before the first `fit`."""
        optimizer = self._own_ivon()
        return optimizer if optimizer is not None and optimizer.has_posterior else None

    def drawn_network(self) -> keras.Model:
        """The network that draws its weights at each call: the network itself where its layers have the noise.

        Raises:
            ValueError: if the optimizer is to have the posterior, and has none.
        """
        if not self.optimizer_posterior:
            return self.network
        optimizer = self.posterior_optimizer
        if optimizer is None:
            raise ValueError(
                f"`model` {self.name!r} has no posterior yet: its optimizer has it (optimizer_posterior=True), which "  # type: ignore[attr-defined]
                "is made by fit. Call fit, or load a file with its optimizer (compile=True)."
            )
        if self._drawn is None or self._drawn.network.posterior_optimizer is not optimizer:
            self._drawn = _Kept(DrawnNetwork(self.network, optimizer))
        return self._drawn.network

    def _own_ivon(self) -> IVON | None:
        return ivon_of(getattr(self, "optimizer", None)) if self.optimizer_posterior else None

    @contextlib.contextmanager
    def _drawing_to_train(self, *args: Any) -> Iterator[None]:
        """Within this context a training step evaluates the network at one draw, which the optimizer knows.

        Args:
            *args: Of `train_step`.
        """
        optimizer = self._own_ivon()
        if optimizer is None or not optimizer.built:  # Keras builds by a symbolic step
            yield
            return
        values = None
        if keras.backend.backend() == "jax":
            state, model = args[0], self
            variables = [*self.optimizer.variables, *model.trainable_variables]  # type: ignore[attr-defined]
            values = optimizer_values(variables, [*state[2], *state[0]])
        with optimizer.step(values) as (noise, kl):
            token = _draw.set(_Draw(noise, kl))
            try:
                yield
            finally:
                _draw.reset(token)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step of evaluation as `keras.Model.test_step` does, at one draw of the weights."""
        if self.posterior_optimizer is None:
            return super().test_step(*args, **kwargs)  # type: ignore[misc]
        drawn: Any = self.drawn_network()
        if keras.backend.backend() != "jax":
            with self._drawing(drawn):
                return super().test_step(*args, **kwargs)  # type: ignore[misc]
        (*state, values), data = args
        variables = [*drawn.own_state, *self.trainable_variables]  # type: ignore[attr-defined]
        with (
            optimizer_values(variables, [*values, *state[0]]),
            keras.StatelessScope(list(zip(drawn.own_state, values, strict=True))),
            self._drawing(drawn) as draw,
        ):
            pass
        token = _draw.set(draw)
        try:
            logs, after = super().test_step(tuple(state), data)  # type: ignore[misc]
        finally:
            _draw.reset(token)
        return logs, (*after, [*values[:-1], next_seed(values[-1])])

    def make_test_function(self, force: bool = False) -> Any:
        """Makes the function of evaluation, which on JAX takes the optimizer's posterior beside the model's state."""
        before = getattr(self, "test_function", None)
        super().make_test_function(force)  # type: ignore[misc]
        made = self.test_function
        if keras.backend.backend() != "jax" or not self.optimizer_posterior or made is before:
            return

        def run(state: Any, iterator: Any) -> Any:
            if self.posterior_optimizer is None:
                return made(state, iterator)
            drawn: Any = self.drawn_network()
            values = [ops.copy(current_value(variable)) for variable in drawn.own_state]  # the call takes their memory
            drawn.seed_generator.next()
            logs, after = made((*state, values), iterator)
            return logs, after[:3]

        self.test_function = run

    @contextlib.contextmanager
    def _drawing(self, drawn: Any) -> Iterator[_Draw]:
        draw = _Draw(drawn.noise(), ops.stop_gradient(drawn.posterior_optimizer.kl_divergence()))
        token = _draw.set(draw)
        try:
            yield draw
        finally:
            _draw.reset(token)

    @contextlib.contextmanager
    def _at_drawn_weights(self, inputs: Any) -> Iterator[None]:
        """Within this context the network has the weights of the step's draw; outside of a step of a draw of its own.

        Args:
            inputs: Of the call.

        Raises:
            ValueError: if a function that JAX compiles for the user would hold the posterior as it is now.
        """
        draw = _draw.get()
        optimizer = self._own_ivon()
        if optimizer is None or (draw is None and not self._draws_for(inputs)):
            yield
            return
        noise = self.drawn_network().noise() if draw is None else draw.noise
        with evaluated_at(self.network, optimizer.drawn(noise)):
            yield

    def _draws_for(self, inputs: Any) -> bool:
        """Whether a call outside of a step draws: not where Keras looks for shapes, or nothing was trained."""
        if self.posterior_optimizer is None:
            return False
        if is_tracing():
            raise ValueError(
                "`model` must not be called in a function that JAX compiles or differentiates while its posterior is "
                "its optimizer's, which would be a constant there. Call model.predict_distribution."
            )
        return keras.backend.backend() != "torch" or all(is_concrete(leaf) for leaf in keras.tree.flatten(inputs))

    @contextlib.contextmanager
    def _at_drawn_likelihood(self) -> Iterator[None]:
        """Within this context the likelihood has the weights of the step's draw; outside of a step their means."""
        draw, optimizer = _draw.get(), self._own_ivon()
        with contextlib.ExitStack() as stack:
            if draw is not None and optimizer is not None:
                values = optimizer.drawn(draw.noise)
                for head in self._heads.each():
                    if head.variables:
                        stack.enter_context(evaluated_at(head, values))
            yield

    def _optimizer_kl(self) -> Tensor | float:
        """Divergence of the optimizer's posterior, in nats, without a gradient: its update has the prior's part."""
        draw = _draw.get()
        if draw is not None:
            return draw.kl
        optimizer = self.posterior_optimizer
        return 0.0 if optimizer is None else ops.stop_gradient(optimizer.kl_divergence())


def ivon_of(optimizer: Any) -> IVON | None:
    """An IVON, or the one inside a `LossScaleOptimizer`; None of any other."""
    inner = innermost(optimizer)
    return inner if isinstance(inner, IVON) else None


def check_optimizer(model: Any, optimizer: Any) -> None:
    """Refuses an optimizer that does not go with `optimizer_posterior`, and a model that does not go with IVON.

    Raises:
        ValueError: if so.
    """
    is_ivon = ivon_of(optimizer) is not None
    if is_ivon and not model.optimizer_posterior:
        raise ValueError(
            "`optimizer` must not be IVON for a model whose layers are to have the posterior. Build the model with "
            "bdl.VariationalModel(network, likelihood, optimizer_posterior=True), around a plain network."
        )
    if not model.optimizer_posterior:
        return
    if not is_ivon:
        raise ValueError(
            f"`optimizer` must be a bdl.optimizers.IVON with optimizer_posterior=True, not {optimizer!r}: without its "
            "estimate of the Hessian the weights have no posterior."
        )
    if not is_one_device(model):
        raise ValueError("`optimizer` must not be IVON on several devices: each would have to draw the same weights.")


def check_plain(network: keras.Layer, heads: Heads, kl_weight: Any, num_samples: int) -> None:
    """Refuses what a posterior of the optimizer's does not go with.

    Raises:
        ValueError: if so.
    """
    if isinstance(kl_weight, KLSchedule) or (kl_weight is not None and kl_weight <= 0):
        raise ValueError(
            f"`kl_weight` must be a positive number or None (1) with optimizer_posterior=True, not {kl_weight!r}: the "
            "posterior's scale is sqrt(T / (N (h + d))), and there is no estimate of h without noise."
        )
    if num_samples != 1:
        raise ValueError(
            f"`num_samples` must be 1 with optimizer_posterior=True, not {num_samples!r}: the estimate of the Hessian "
            "needs the gradient of each draw by itself, and a step has that of their mean. Its momentum averages draws."
        )
    random_layers = [layer.name for layer in flatten_layers(network) if isinstance(layer, HasKL)]
    if random_layers:
        raise ValueError(
            "`network` must be plain with optimizer_posterior=True, without variational layers such as "
            f"{random_layers[:3]}: their weights would have two posteriors. Make it plain by "
            "bdl.convert.to_deterministic(model)."
        )
    if any(
        getattr(head, "scale_prior", None) is not None
        for each in heads.each()
        for head in (each, getattr(each, "component", None))
    ):
        raise ValueError(
            "`likelihood` must have no `scale_prior` with optimizer_posterior=True: the prior of a learned scale is "
            "IVON's, N(0, prior_scale^2) of its variable."
        )
