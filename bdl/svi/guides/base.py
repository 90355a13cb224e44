"""What every guide is: a Keras layer that holds a family over the real line for one site, or for several jointly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import current_value
from bdl.random import Tensor
from bdl.svi.guides.gaussian import RealLine

START_SCALE = 0.1
"""Standard deviation on the real line with which a fit begins where no curvature is known, as in NumPyro and TFP."""


class Guide(keras.Layer):
    """Base of guides.

    A guide is bound to its sites once, when the story has been traced; only then does it have variables. From then on
    it gives a distribution over the real line, of `size` numbers: those of its sites one after the other.

    Attributes:
        is_local: Whether it is for sites with a value for each row.
        is_point: Whether its distribution is a point, which has no density.
        is_discrete: Whether its numbers are the places of discrete values, or counts: then they have no gradient.
        is_conjugate: Whether it is an exponential family that stands at points in training; see
            `bdl.svi.guides.conjugate`.
        follows_prior: Whether it is made of the prior of its sites, as a run of the story finds it: then it has a
            method `conditional`, see `bdl.svi.guides.hierarchical`.
        sizes: Numbers on the real line of each of its sites, by name; empty before it is bound.
        shapes: Shapes of their values, of one row's where it is local.
    """

    is_local = False
    is_point = False
    is_discrete = False
    is_conjugate = False
    follows_prior = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    @property
    def size(self) -> int:
        """Real numbers in one draw."""
        return sum(self.sizes.values())

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that make one draw."""
        return self.size

    @property
    def given(self) -> tuple[str, ...]:
        """Global sites on whose draw the distribution depends."""
        return ()

    @property
    def iterates(self) -> list[keras.Variable]:
        """Numbers that a fit moves step by step: finite at all times, and averaged at its end."""
        return [weight for weight in self.weights if "float" in weight.dtype]

    def check_data(self, data: Any, argument: str, is_read: bool) -> None:
        """Refuses data that do not go with the guide, where they are arrays and can be seen.

        Args:
            data: NumPy arrays in any structure.
            argument: Name of the argument, for the message.
            is_read: Whether the rows' distributions are to be read, and not fitted.

        Raises:
            ValueError: naming what is wrong, and the fix.
        """

    def coordinates(self, site: str) -> tuple[int, int]:
        """Where a site's numbers begin and end in a draw."""
        names = list(self.sizes)
        start = sum(self.sizes[name] for name in names[: names.index(site)])
        return start, start + self.sizes[site]

    def bind(
        self,
        sizes: Mapping[str, int],
        data: Any = None,
        given_size: int = 0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Makes the variables, for sites of these sizes.

        Args:
            sizes: Numbers on the real line of each site, in the order of a draw.
            data: A batch, for guides that read it.
            given_size: Numbers on the real line of the sites in `given`.
            shapes: Shapes of the sites' values, of one row's where they are local; None takes vectors of these sizes.
        """
        self.sizes = dict(sizes)
        self.shapes = dict(shapes or {name: (size,) for name, size in sizes.items()})
        self.make_variables(data, given_size)
        self.built = True

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes the variables."""
        raise NotImplementedError

    def start_at(self, origin: np.ndarray, frame: np.ndarray | None) -> None:
        """Moves a global guide to where a fit begins.

        Args:
            origin: `(size,)`, on the real line.
            frame: Cholesky factor of a covariance there, `(size, size)`; None where none is known.
        """
        raise NotImplementedError

    def distribution(self, data: Any = None, given: Tensor | None = None) -> RealLine:
        """The distribution of its sites on the real line.

        Args:
            data: The batch of data, for guides that read it.
            given: A draw of the sites in `given`, on the real line: `(numbers,)`.
        """
        raise NotImplementedError

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: `bind` makes the variables."""

    def get_build_config(self) -> dict[str, Any]:
        """What `build_from_config` needs, once the guide is bound."""
        if not self.sizes:
            return {}
        return {"sizes": list(self.sizes.items()), "shapes": [[name, list(each)] for name, each in self.shapes.items()]}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Binds a guide that was loaded to its sites."""
        if config.get("sizes"):
            shapes = {name: tuple(shape) for name, shape in config.get("shapes", [])}
            self.bind({name: int(size) for name, size in config["sizes"]}, shapes=shapes or None)


@runtime_checkable
class Family(Protocol):
    """A family whose parameters something else computes: what `Amortized` takes.

    The guides that are one keep nothing of it in their variables, so that one object serves any number of rows.
    """

    def num_parameters(self, size: int) -> int:
        """Parameters of a distribution of `size` numbers."""

    def num_noise(self, size: int) -> int:
        """Standard normal numbers that make one draw of it."""

    def of_parameters(self, parameters: Tensor, size: int) -> RealLine:
        """The distribution, which is close to a standard normal one where all parameters are zero.

        Args:
            parameters: Any real numbers, `(..., num_parameters(size))`.
            size: Numbers in a draw.
        """


class LocationScaleGuide(Guide):
    """Base of global guides of the form `u = origin + frame (m + T e)`, with the fit's start in `origin` and `frame`.

    Both stay as they are. A fit moves `m` and `T`, which begin at zero and, where the frame is the Cholesky factor of
    the covariance of a Laplace approximation, at the identity: whitened coordinates, whatever the scales of the model.
    """

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes `origin`, `frame` and `m`."""
        shape = (self.size,)
        self.origin = self._weight("origin", shape, "zeros", trainable=False)
        self.frame = self._weight("frame", self.frame_shape(), "zeros", trainable=False)
        self.shift = self._weight("shift", shape, "zeros")
        self.make_scales()
        self.start_at(np.zeros(shape), None)

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that make one draw."""
        return self.num_noise(self.size)

    def num_noise(self, size: int) -> int:
        """Standard normal numbers that make a draw of `size` numbers."""
        return size

    def frame_shape(self) -> tuple[int, ...]:
        """Shape of the frame: standard deviations, or a Cholesky factor."""
        return (self.size,)

    def frame_of(self, frame: np.ndarray) -> np.ndarray:
        """The frame of this guide: here the standard deviation of each coordinate given all others."""
        return 1.0 / np.sqrt(np.diag(np.linalg.inv(frame @ frame.T)))

    def make_scales(self) -> None:
        """Makes the variables of `T`."""

    def start_scales(self, scale: float) -> None:
        """Sets `T` to a multiple of the identity."""

    def start_at(self, origin: np.ndarray, frame: np.ndarray | None) -> None:
        """Moves it to a start: with a frame `T` is the identity there, without one it is small."""
        unit = np.ones(self.size) if len(self.frame_shape()) == 1 else np.eye(self.size)
        self.origin.assign(origin)
        self.frame.assign(unit if frame is None else self.frame_of(frame))
        self.shift.assign(np.zeros(self.size))
        self.start_scales(START_SCALE if frame is None else 1.0)

    def value(self, variable: keras.Variable) -> Tensor:
        """The value of one of its variables as a tensor."""
        return current_value(variable)

    def _weight(self, name: str, shape: Sequence[int], initializer: Any, trainable: bool = True) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=trainable)


def softplus_inverse(value: float) -> float:
    """`log(exp(value) - 1)`.

    Example:
    >>> float(keras.ops.softplus(softplus_inverse(0.1)))
    0.1
    """
    return value + math.log(-math.expm1(-value))


def mean_and_scale(parameters: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means and positive scales, 0 and 1 where the parameters are zero.

    Args:
        parameters: `(..., 2 size)` or more, of which the first count.
        size: Numbers in a draw.

    Example:
    >>> [np.asarray(each) for each in mean_and_scale(np.zeros(4, "float32"), 2)]
    [array([0., 0.], dtype=float32), array([1., 1.], dtype=float32)]
    """
    return parameters[..., :size], ops.softplus(parameters[..., size : 2 * size] + softplus_inverse(1.0))
