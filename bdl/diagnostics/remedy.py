"""What a remedy is: one thing to do, with its reason, its source and the change in code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from bdl.diagnostics.accounting import likelihood_of


@dataclass(frozen=True)
class Remedy:
    """A change that may mend a training.

    Args:
        name: In a few words.
        why: Why it should help, and what it costs.
        source: Where it comes from.
        code: The change in code.
        build: Makes the new model of a model, its likelihood and its training data; None where only the user's code
            can.
        needs_data: Whether it trains something first, and so needs the training data.
    """

    name: str
    why: str
    source: str
    code: str
    build: Callable[[Any, Any, Any], keras.Model] | None = None
    needs_data: bool = False

    def apply(self, model: Any, likelihood: Any = None, data: Any = None) -> keras.Model:
        """A new model with this remedy: compiled, untrained; `fit` it as before.

        Args:
            model: The model that was diagnosed; of an ensemble, a list, the first member is made anew.
            likelihood: Of its labels; None takes the model's own.
            data: The training data `(x, y)`, for a remedy that begins with a training of its own.

        Raises:
            ValueError: if it needs a change in your code, or data that are not given.
        """
        if self.build is None:
            raise ValueError(f"The remedy {self.name!r} needs a change in your code: {self.code}")
        if self.needs_data and data is None:
            raise ValueError(f"The remedy {self.name!r} trains a network first: pass data=(x, y), the training data.")
        likelihood = likelihood_of(model, likelihood)
        return self.build(model[0] if isinstance(model, (list, tuple)) else model, likelihood, data)
