"""What stands around a training step: an optimizer with its variables, the scope of a strategy, a lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from bdl.keras_internals import flatten_layers, innermost
from bdl.protocols import LearnsNoise, ReadsModel


def inform_optimizer(model: Any) -> None:
    """Tells the optimizer about the model, if it asks for that: `bdl.protocols.ReadsModel`."""
    optimizer = innermost(getattr(model, "optimizer", None))
    if isinstance(optimizer, ReadsModel):
        optimizer.read_model(model)


def learning_noise(model: Any) -> list[Any]:
    """Variables that take noise off the gradients of others, and are no part of a gradient's signal and noise."""
    return [each for layer in flatten_layers(model) if isinstance(layer, LearnsNoise) for each in layer.weights]


def build_optimizer(model: Any) -> None:
    """Makes the optimizer's variables, if it has none yet: Keras on TensorFlow would trace the first step twice."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with strategy_scope(model):
            optimizer.build(model.trainable_variables)


def strategy_scope(model: Any) -> Any:
    """The scope in which a model's variables are made; TensorFlow's trainer alone has one."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def prepared(step: Callable[..., Any], model: Any, lock: Any) -> Callable[..., Any]:
    """The training step of a model, with the optimizer built before the first one; it runs while it holds a lock.

    Not built before: a callback may still choose which layers are trained when `fit` begins.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        if model.network.built:
            build_optimizer(model)
        with lock:
            return step(*args, **kwargs)

    return run
