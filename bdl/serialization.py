"""Small immutable settings objects (priors, posteriors, schedules) that Keras can save and load."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import keras


class Serializable:
    """Base of frozen dataclasses whose fields are their Keras configuration.

    Fields may hold numbers, strings, None or other `Serializable` objects.
    """

    def get_config(self) -> dict[str, Any]:
        """Returns the fields, nested objects serialised as Keras does."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: serialize(value) for name, value in fields.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the object again from `get_config()`."""
        return cls(**{name: deserialize(value) for name, value in config.items()})


def serialize(value: Any) -> Any:
    """Turns a `Serializable` into its Keras configuration; anything else is returned as it is."""
    return keras.saving.serialize_keras_object(value) if isinstance(value, Serializable) else value


def deserialize(value: Any) -> Any:
    """Inverse of `serialize`."""
    is_config = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_config else value


def take_format(config: dict[str, Any], known: int) -> None:
    """Takes the version of its format out of a model's configuration.

    Args:
        config: Of the model.
        known: Newest format that this bdl reads.

    Raises:
        ValueError: if a newer version of bdl wrote it.

    Example:
    >>> config = {"format_version": 1, "seed": 0}
    >>> take_format(config, known=2)
    >>> config
    {'seed': 0}
    """
    version = config.pop("format_version", 1)
    if version > known:
        raise ValueError(
            f"This model was saved in format {version}, newer than format {known} of this bdl. Upgrade bdl to load it."
        )


def resolve(value: Any, registry: dict[str, type], argument: str, *expected: type) -> Any:
    """Turns a name, a configuration or an object into an object of an expected type.

    Args:
        value: An instance of an expected class, the name of one in `registry` (built with its defaults), or a
            configuration.
        registry: Classes by name.
        argument: Name of the argument, for the message.
        *expected: The base classes of which the result must have one.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(value, str) and value in registry:
        value = registry[value]()
    value = deserialize(value)
    if isinstance(value, expected):
        return value
    # The first two parts of a module are where a user imports it from.
    kinds = [f"a {'.'.join(base.__module__.split('.')[:2])}.{base.__name__}" for base in expected]
    raise ValueError(f"`{argument}` must be {', '.join(kinds)} or one of the names {sorted(registry)}, not {value!r}.")
