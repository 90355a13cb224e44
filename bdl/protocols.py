"""What layers and models offer to whoever trains, samples or diagnoses them, without knowing their class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import keras
from keras import ops

Tensor = Any


@runtime_checkable
class HasKL(Protocol):
    """A layer whose weights have posteriors: `bdl.elbo.kl_divergence` adds up all of a model.

    Attributes:
        name: The layer's.
        built: Whether it has its weights yet; without them there is no divergence.
    """

    name: str
    built: bool

    def kl_divergence(self) -> Tensor:
        """Divergence of the weights' posteriors from their priors: scalar, total, in nats."""


@runtime_checkable
class HasLocalLatents(Protocol):
    """A layer with latent variables of single examples, whose KL it gives to `bdl.layers.add_local_kl`.

    Attributes:
        name: Of the layer.
        sums_latents: Whether they are summed or sampled out; False where only their mean is plugged in.
        uses_score_function: Whether the gradient of its noise is a score function's, right for a sum of log
            likelihoods only.
        decoder: The network behind single values of the latent variables, or None where their mean or a draw goes on.
    """

    name: str
    sums_latents: bool
    uses_score_function: bool
    decoder: Any

    def latent_figure_names(self) -> list[str]:
        """Names of the figures that belong in the logs."""

    def latent_figures(self) -> Tensor:
        """The figures of the present batch, a vector in the order of the names."""


@runtime_checkable
class AroundNetwork(Protocol):
    """A model that is called like a network that it holds, and returns what that returns.

    Attributes:
        network: The network.
        is_called_like_network: True, which says so; False in a subclass whose `call` returns something else.
    """

    network: Any
    is_called_like_network: bool


@runtime_checkable
class HasTemperature(Protocol):
    """A model that trains a network on the ELBO: it knows the size of its data, and the T of each step.

    Attributes:
        network: The Keras model that is trained; its outputs are the model's.
        num_examples: Number of training examples N, or None before it is known.
        temperature: T of the next training step, or None where its schedule does not know its length yet.
        final_temperature: T once the schedule has run out; a schedule that averages to a number has that one.
    """

    network: Any
    num_examples: int | None
    temperature: float | None
    final_temperature: float

    def end_schedule(self) -> None:
        """Moves the count of steps to the end of the schedule, if that is before it."""


@runtime_checkable
class TellsStory(Protocol):
    """A model of a story: latent sites, a guide for each, and no network whose outputs are the model's.

    Attributes:
        sites: What the trace found of each site: `name`, `kind`, `shape`, `size`; empty before it.
        guides: Keras layers of the families; `is_local`, `is_point`, `sizes`, `iterates` and `distribution()`.
        progress: Number of examples, measured and told, and the schedule of T.
    """

    sites: Any
    guides: Any
    progress: Any

    def guide_of(self, site: str) -> Any:
        """The guide of a latent site."""

    def iterate(self) -> Any:
        """Where the guides of global sites are (`bdl.training.iterates.Iterate`); None where each is a point."""

    def iterate_names(self) -> Any:
        """Name of each number of such an iterate."""

    def k_hat(self, x: Any, num_samples: int, seed: int | None) -> Any:
        """How heavy the tail of the guides' importance weights is."""


@dataclass(frozen=True, eq=False)
class GaussianVariables:
    """Which variables hold a Gaussian: its mean, and the scales that belong to it.

    Args:
        mean: `m`, in any affine coordinates.
        rho: Of the shape of `mean`; the scales, or the diagonal of the Cholesky factor, are made of it.
        below: What is below the diagonal of the Cholesky factor, `(size, size)`, and anything else above; None of
            independent numbers.
        speed: The scale is `exp(speed rho)`; None: it is `softplus(rho)`.
    """

    mean: keras.Variable
    rho: keras.Variable
    below: keras.Variable | None = None
    speed: float | None = None

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The variables, that of `below` last if there is one."""
        return (self.mean, self.rho) if self.below is None else (self.mean, self.rho, self.below)

    def scale(self, rho: Tensor) -> Tensor:
        """The scale that a value of `rho` stands for."""
        return ops.softplus(rho) if self.speed is None else ops.exp(self.speed * rho)

    def rho_of(self, scale: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return scale + ops.log(-ops.expm1(-scale)) if self.speed is None else ops.log(scale) / self.speed

    def slope(self, rho: Tensor) -> Tensor:
        """Derivative of `scale`."""
        return ops.sigmoid(rho) if self.speed is None else self.speed * ops.exp(self.speed * rho)


@dataclass(frozen=True, eq=False)
class NaturalVariables:
    """A variable that holds positive parameters of an exponential family, natural ones up to constants.

    The gradient of a loss in it is that in the family's mean parameters, which is the natural gradient.

    Args:
        values: The variable.
    """

    values: keras.Variable

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The variable."""
        return (self.values,)


@runtime_checkable
class HasNaturalParameters(Protocol):
    """A layer or guide of which natural gradients know variables: `bdl.optimizers.NaturalGradient`."""

    def natural_variables(self) -> Sequence[GaussianVariables | NaturalVariables]:
        """Variables that belong together; those that are frozen, or of other families, may be left out."""


@runtime_checkable
class LearnsNoise(Protocol):
    """A layer whose variables take noise off the gradients of others: noise and signal of a fit are not theirs.

    Attributes:
        is_control_variate: True, which says so.
        weights: Its variables.
    """

    is_control_variate: bool
    weights: Sequence[keras.Variable]


@runtime_checkable
class ReadsModel(Protocol):
    """An optimizer that must know the model that it trains, and the number of rows N."""

    def read_model(self, model: Any) -> None:
        """Takes what it needs of a model, which calls this when it is compiled and when a fit begins."""
