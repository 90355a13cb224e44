"""The amortized guide: a recognition network reads each row's posterior off its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.base import Family, Guide
from bdl.svi.guides.gaussian import RealLine
from bdl.svi.guides.selection import DISCRETE, GUIDES

FAMILIES = {**{name: guide for name, guide in GUIDES.items() if issubclass(guide, Family)}, **DISCRETE}
"""Families that can be named by a string."""


@keras.saving.register_keras_serializable(package="bdl")
class Amortized(Guide):
    """A distribution of each row on the real line, whose parameters a network computes from the row's data; for locals.

    The network needs no particular outputs: a dense layer of this guide, which starts at zero, makes parameters of
    them. So every row begins with mean 0 and standard deviation 1 on the real line.

    Args:
        network: A Keras layer or model, from the inputs to features of each row.
        inputs: What it reads: a key of the data or a list of keys, whose arrays are flattened and joined, or a
            registered function of the data; None takes data that are one array. One key alone is handed on as it is.
        given: Names of global sites whose draw the network reads as well, on the real line, after its inputs.
        family: What each row has: `"mean_field"`, independent Gaussians within it; `"full_rank"`, a Gaussian with all
            correlations within it; another guide's name that is a family, or such a guide, with arguments of yours. Of
            discrete sites `"categories"` or `"counts"`, or `Categories` and `Counts` with arguments of yours.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `family` is unknown, or `inputs` names data that are not there.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", arXiv 1312.6114.

    Example:
    >>> guide = Amortized(keras.layers.Dense(4, activation="relu"), inputs=["x"])
    >>> data = {"x": np.ones((5, 2), "float32")}
    >>> guide.bind({"code": 3}, data)
    >>> tuple(guide.distribution(data).draw(np.zeros((5, 3), "float32")).shape)
    (5, 3)
    """

    is_local = True

    def __init__(
        self,
        network: keras.Layer,
        inputs: str | Sequence[str] | Callable[[Any], Tensor] | None = None,
        given: Sequence[str] = (),
        family: str | Guide = "mean_field",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(network, keras.Layer):
            raise ValueError(f"`network` must be a Keras layer or model, not {network!r}.")
        self.network = network
        self.inputs = inputs if inputs is None or isinstance(inputs, str) or callable(inputs) else list(inputs)
        self._given = tuple(given)
        self.family = family
        self._family = as_family(family)
        self.is_discrete = self._family.is_discrete
        self._features = 0

    @property
    def given(self) -> tuple[str, ...]:
        """Global sites whose draw the network reads."""
        return self._given

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that make one draw of a row."""
        return self._family.num_noise(self.size)

    def misfit(self, site: Any) -> str | None:
        """Why a discrete family is not for a site; None if it is."""
        return self._family.misfit(site.num_values)

    def make_variables(self, data: Any, given_size: int) -> None:
        """Builds the network, by calling it on the data, and the dense layer behind it."""
        if data is not None:
            given = ops.zeros((given_size,), dtype=self.variable_dtype) if self.given else None
            self._features = int(self._read(data, given).shape[-1])
        number = self._family.num_parameters(self.size)
        self.head = keras.layers.Dense(
            number, kernel_initializer="zeros", dtype=self.variable_dtype, name=f"{self.name}_head"
        )
        self.head.build((None, self._features))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> RealLine:
        """A distribution for each row, `(rows, size)`."""
        return self._family.of_parameters(self.head(self._read(data, given)), self.size)

    def _read(self, data: Any, given: Tensor | None) -> Tensor:
        """Features of each row, `(rows, features)`."""
        inputs = self._pick(data)
        if given is not None:
            tiled = ops.broadcast_to(given, (ops.shape(inputs)[0], given.shape[-1]))
            inputs = ops.concatenate([self._flat(inputs), ops.cast(tiled, self.variable_dtype)], axis=-1)
        return self._flat(self.network(inputs))

    def _pick(self, data: Any) -> Tensor:
        if self.inputs is None:
            if isinstance(data, dict):
                raise ValueError(f"`inputs` must name what the network reads of {sorted(data)}, not be None.")
            return ops.cast(data, self.variable_dtype)
        if callable(self.inputs):
            return self.inputs(data)
        missing = [key for key in ([self.inputs] if isinstance(self.inputs, str) else self.inputs) if key not in data]
        if missing:
            raise ValueError(f"`inputs` must be keys of the data, {sorted(data)}, not {missing}.")
        if isinstance(self.inputs, str):
            return ops.cast(data[self.inputs], self.variable_dtype)
        return ops.concatenate([self._flat(data[key]) for key in self.inputs], axis=-1)

    def _flat(self, values: Tensor) -> Tensor:
        """One row of numbers for each row, without knowing how many rows there are."""
        width = 1
        for length in values.shape[1:]:
            width *= int(length)
        return ops.cast(ops.reshape(values, (-1, width)), self.variable_dtype)

    def get_build_config(self) -> dict[str, Any]:
        """What `build_from_config` needs, once the guide is bound."""
        return {**super().get_build_config(), "features": self._features}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Binds a guide that was loaded to its sites."""
        self._features = config.get("features", 0)
        super().build_from_config(config)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        inputs = keras.saving.serialize_keras_object(self.inputs) if callable(self.inputs) else self.inputs
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "inputs": inputs,
            "given": list(self.given),
            "family": self.family if isinstance(self.family, str) else keras.saving.serialize_keras_object(self.family),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Amortized:
        """Builds the guide again."""
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(config["network"])
        if isinstance(config["inputs"], dict):
            config["inputs"] = keras.saving.deserialize_keras_object(config["inputs"])
        if isinstance(config["family"], dict):
            config["family"] = keras.saving.deserialize_keras_object(config["family"])
        return cls(**config)


def as_family(value: Any) -> Any:
    """A family, from a guide that is one or its name.

    Raises:
        ValueError: if it is neither, or a guide that has sites of its own.

    Example:
    >>> as_family("mean_field").num_parameters(3)
    6
    """
    family = FAMILIES[value]() if isinstance(value, str) and value in FAMILIES else value
    if not isinstance(family, Family) or not isinstance(family, Guide):
        raise ValueError(f"`family` must be one of {tuple(FAMILIES)}, or such a guide, not {value!r}.")
    if family.sizes:
        raise ValueError(f"`family` must be a guide without sites of its own, not that of {list(family.sizes)}.")
    return family
