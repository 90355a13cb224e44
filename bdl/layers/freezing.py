"""Variables that are frozen, and unfrozen, with a weight of another layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras


class Followers:
    """Variables each of which trains only while a weight does.

    Keras sets `trainable` of the variables that a layer holds itself and tells nobody, so the followers look at their
    weights whenever they are asked for. A variable that was frozen by itself stays frozen.

    Example:
    >>> weight, scale = keras.Variable(1.0), keras.Variable(2.0)
    >>> followers = Followers()
    >>> followers.add([scale], weight)
    >>> weight.trainable = False
    >>> followers.update()
    >>> scale.trainable
    False
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[keras.Variable, keras.Variable]] = []
        self._frozen: set[int] = set()

    def add(self, variables: Iterable[keras.Variable], weight: keras.Variable) -> None:
        """Lets variables follow a weight from now on."""
        self._pairs.extend((variable, weight) for variable in variables)

    def update(self) -> None:
        """Freezes the variables of frozen weights, and thaws what it froze where the weight trains again."""
        for variable, weight in self._pairs:
            if variable.trainable and not weight.trainable:
                variable.trainable = False
                self._frozen.add(id(variable))
            elif weight.trainable and id(variable) in self._frozen:
                variable.trainable = True
                self._frozen.discard(id(variable))


class FrozenWithLayer:
    """A wrapper whose own variables follow the weights of the layer inside it, whichever of the two was frozen.

    To be inherited before the Keras class.
    """

    layer: keras.Layer
    _followers: Followers | None = None

    def follow(self, weight: keras.Variable, variables: Iterable[keras.Variable]) -> None:
        """Lets variables of the wrapper follow a weight of the layer inside; called when the wrapper is built."""
        if self._followers is None:
            self._followers = Followers()
        self._followers.add(variables, weight)

    @property
    def variables(self) -> list[keras.Variable]:
        """All state; a frozen weight's followers are not trainable."""
        self._update_followers()
        return super().variables  # type: ignore[misc]

    @property
    def weights(self) -> list[keras.Variable]:
        """All weights; a frozen weight's followers are not trainable."""
        self._update_followers()
        return super().weights  # type: ignore[misc]

    @property
    def trainable(self) -> bool:
        """Whether the wrapper trains, and with it, when set, the layer inside."""
        return super().trainable  # type: ignore[misc]

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.layer.trainable = value
        self._update_followers()  # before Keras freezes them, so that they count as followers
        wrapper: Any = self
        keras.Layer.trainable.fset(wrapper, value)

    def _update_followers(self) -> None:
        if self._followers is not None:
            self._followers.update()
