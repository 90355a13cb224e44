"""What stands around a training step: an optimizer with its variables, the scope of a strategy, a lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


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


def locked(function: Callable[..., Any], lock: Any) -> Callable[..., Any]:
    """The function, run while it holds a lock."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return function(*args, **kwargs)

    return run
