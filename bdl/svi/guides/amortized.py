"""The amortized guide: a recognition network reads each row's posterior off its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.base import Family, Guide
from bdl.svi.guides.gaussian import RealLine
from bdl.svi.guides.mean_field import MeanField
from bdl.svi.guides.selection import DISCRETE, GUIDES
from bdl.svi.guides.structured import Structured

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
        by_step: Whether a value of the site is a path, of T steps on its first axis, whose steps share one dense layer.
            The network reads `(rows, T, inputs)`, with the draw of `given` at each step, and returns
            `(rows, T, features)`, as recurrent and convolutional ones do. The features of a step make the parameters of
            that step, with the same weights for any T. The family is `"mean_field"` or `"structured"`, a Markov chain
            for each row.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if `family` is unknown, or `inputs` names data that are not there; with `by_step`, if the family is
            neither `"mean_field"` nor `"structured"`, or inputs or features do not have the site's steps.

    Sources: Kingma and Welling 2014, "Auto-encoding variational Bayes", arXiv 1312.6114; Archer et al. 2015, "Black box
    variational inference for state space models", arXiv 1511.07367, for the chain of a path.

    Example:
    >>> guide = Amortized(keras.layers.Dense(4, activation="relu"), inputs=["x"])
    >>> data = {"x": np.ones((5, 2), "float32")}
    >>> guide.bind({"code": 3}, data)
    >>> tuple(guide.distribution(data).draw(np.zeros((5, 3), "float32")).shape)
    (5, 3)

    A path of 100 steps for each row, whose Markov chain a recurrent network reads off a series:

    >>> recurrent = keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True))
    >>> guide = Amortized(recurrent, inputs="x", family="structured", by_step=True)
    >>> data = {"x": np.ones((2, 100), "float32")}
    >>> guide.bind({"path": 100}, data)
    >>> tuple(guide.distribution(data).draw(np.zeros((2, 100), "float32")).shape)
    (2, 100)
    """

    is_local = True

    def __init__(
        self,
        network: keras.Layer,
        inputs: str | Sequence[str] | Callable[[Any], Tensor] | None = None,
        given: Sequence[str] = (),
        family: str | Guide = "mean_field",
        by_step: bool = False,
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
        self.by_step = bool(by_step)
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

    @property
    def _num_steps(self) -> int:
        """Steps that share the dense layer: T of a path, 1 without `by_step`."""
        return int(next(iter(self.shapes.values()))[0]) if self.by_step else 1

    def make_variables(self, data: Any, given_size: int) -> None:
        """Builds the network, by calling it on the data, and the dense layer behind it."""
        if self.by_step:
            self._check_path()
        if data is not None:
            given = ops.zeros((given_size,), dtype=self.variable_dtype) if self.given else None
            self._features = int(self.features(data, given).shape[-1]) // self._num_steps
        number = self.num_outputs() // self._num_steps
        self.head = keras.layers.Dense(
            number, kernel_initializer="zeros", dtype=self.variable_dtype, name=f"{self.name}_head"
        )
        self.head.build((None, self._features))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> RealLine:
        """A distribution for each row, `(rows, size)`."""
        return self._family.of_parameters(self.parameters(data, given), self.size)

    def num_outputs(self) -> int:
        """Numbers that the dense layer makes for one row."""
        return self._family.num_parameters(self.size)

    def parameters(self, data: Any, given: Tensor | None = None) -> Tensor:
        """Parameters of each row's distribution, `(rows, num_outputs)`.

        Args:
            data: The batch.
            given: A draw of the sites in `given`, on the real line: `(numbers,)`.
        """
        parameters = self.head(self._of_steps(self.features(data, given), self._features))
        if not self.by_step:
            return parameters
        width = self.size // self._num_steps
        parameters = ops.reshape(parameters, (-1, self._num_steps, parameters.shape[-1] // width, width))
        return self._flat(ops.transpose(parameters, (0, 2, 1, 3)))  # what is of one kind, such as the means, together

    def _check_path(self) -> None:
        """Refuses what has no parameters by step."""
        if not isinstance(self._family, MeanField | Structured):
            raise ValueError(
                "`family` of Amortized(by_step=True) must be 'mean_field' or 'structured', whose parameters belong to "
                f"single numbers, not {self.family!r}. Take one of these, or by_step=False."
            )
        if len(self.shapes) > 1 or not next(iter(self.shapes.values())) or self.size % self._num_steps:
            raise ValueError(
                f"`by_step` of Amortized must be False for sites of the shapes {self.shapes}: it takes one site, whose "
                "first axis is time. Give each path a guide of its own."
            )

    def features(self, data: Any, given: Tensor | None = None, network: keras.Layer | None = None) -> Tensor:
        """Features of each row, `(rows, features)`, with `by_step` those of one step after the other.

        Args:
            data: The batch.
            given: A draw of the sites in `given`, on the real line: `(numbers,)`.
            network: That makes them; None takes the guide's own.
        """
        inputs = self._pick(data)
        if self.by_step:
            inputs = self._by_step(inputs, "`inputs`")
        if given is not None:
            inputs = inputs if self.by_step else self._flat(inputs)
            tiled = ops.broadcast_to(given, (*ops.shape(inputs)[:-1], given.shape[-1]))
            inputs = ops.concatenate([inputs, ops.cast(tiled, self.variable_dtype)], axis=-1)
        found = (network or self.network)(inputs)
        return self._flat(self._by_step(found, "What `network` returns") if self.by_step else found)

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
        shaped = (lambda values: self._by_step(values, "`inputs`")) if self.by_step else self._flat
        return ops.concatenate([shaped(data[key]) for key in self.inputs], axis=-1)

    def _flat(self, values: Tensor) -> Tensor:
        """One row of numbers for each row, without knowing how many rows there are."""
        width = 1
        for length in values.shape[1:]:
            width *= int(length)
        return ops.cast(ops.reshape(values, (-1, width)), self.variable_dtype)

    def _by_step(self, values: Tensor, what: str) -> Tensor:
        """A row of numbers for each step of each row, `(rows, T, numbers)`."""
        steps = self._num_steps
        if len(values.shape) < 2 or values.shape[1] != steps:
            raise ValueError(
                f"{what} of Amortized(by_step=True) must have the {steps} steps of the site on the second axis, "
                f"(rows, {steps}, ...), not the shape {tuple(values.shape)}."
            )
        flat = self._flat(values)
        return self._of_steps(flat, int(flat.shape[-1]) // steps)

    def _of_steps(self, flat: Tensor, width: int) -> Tensor:
        """`(rows, numbers)` to `(rows, T, width)`; as it is without `by_step`."""
        return ops.reshape(flat, (-1, self._num_steps, width)) if self.by_step else flat

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
            "by_step": self.by_step,
            "family": self.family if isinstance(self.family, str) else keras.saving.serialize_keras_object(self.family),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Amortized:
        """Builds the guide again."""
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(config["network"])
        if isinstance(config["inputs"], dict):
            config["inputs"] = keras.saving.deserialize_keras_object(config["inputs"])
        if isinstance(config.get("family"), dict):
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
