"""The four ways to evaluate a layer under its weight posterior.

For `y = x @ W` with `W = M + D`, `M` the mean and `D` the random part:

- reparameterization: one `W` for the whole batch (Kingma & Welling 2014; Blundell et al. 2015); in training Dense and
  EinsumDense evaluate every second example under the antithetic kernel `M - D`;
- flipout: `x @ M + ((x * s) @ D) * t` with random signs `s`, `t` for each example (Wen et al. 2018, eq. 4);
- local reparameterization: `N(x @ M, x^2 @ scale^2)` drawn at each output (Kingma et al. 2015, eq. 6);
- rank-1: `((x * r) @ M) * s` with random factors for each example (Dusenberry et al. 2020, eq. 4).

All leave the layer's bias and activation in place. Each takes the layer's `Weights` and returns the output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
from keras import ops

from bdl import random
from bdl.estimators.linear import Stage, Values, feature_shape
from bdl.keras_internals import cut_as, is_ragged, is_sparse
from bdl.posteriors import Component, FactorPosterior, Variables
from bdl.priors import Prior, TiedMean
from bdl.random import Tensor

_whole_functions: ContextVar[bool] = ContextVar("whole_functions", default=False)


@contextlib.contextmanager
def whole_functions() -> Iterator[None]:
    """Within this context each call of a layer draws one function for all of its inputs, whatever the estimator.

    The noise of a call then depends on the layer's seed alone and not on the batch, so that with equal seeds equal
    functions are evaluated on different batches.
    """
    token = _whole_functions.set(True)
    try:
        yield
    finally:
        _whole_functions.reset(token)


def draws_whole_functions() -> bool:
    """Whether `whole_functions` is in force."""
    return _whole_functions.get()


@dataclass(frozen=True)
class SampledWeight(Component):
    """One weight that is drawn from its posterior: a component of its layer's.

    Args:
        index: Its number within the layer, which selects its noise.
    """

    index: int

    @property
    def point_prior(self) -> Prior | None:
        """Prior of the means where these are point estimates that pay for one (`TiedMean`); else None."""
        return self.prior.mean_prior if isinstance(self.prior, TiedMean) else None

    def components(self) -> list[Component]:
        """What is drawn: the weight itself."""
        return [self]


@dataclass(frozen=True)
class FactoredWeight:
    """One point-estimated weight between random factors of its layer's inputs and outputs.

    Args:
        mean: The wrapped layer's variable.
        posterior: Posterior of the factors.
        input_axes: The weight's fan-in axes.
        variables: The posterior's variables.
        prior_variables: The variables that `posterior.kernel_prior` keeps in the layer.
    """

    mean: keras.Variable
    posterior: FactorPosterior
    input_axes: tuple[int, ...]
    variables: Variables
    prior_variables: Variables

    prior: ClassVar[None] = None
    """The posterior holds the priors of its factors and of the weight."""

    @property
    def point_prior(self) -> Prior | None:
        """Prior of the weight, which is a point estimate; None is maximum likelihood."""
        return self.posterior.kernel_prior

    def components(self) -> list[Component]:
        """What is drawn: the factors."""
        return self.posterior.components(self.variables)

    def kl(self) -> Tensor:
        """Divergence of the factors, plus the weight's penalty: scalar, total, in nats, in float32."""
        mean = ops.cast(ops.convert_to_tensor(self.mean), "float32")
        return self.posterior.kl(mean, self.variables, self.input_axes, self.prior_variables)


Weights = dict[str, SampledWeight | FactoredWeight]
"""The weights of a layer that have a posterior, by name."""


@dataclass(frozen=True)
class Noise:
    """Randomness of one call of a layer.

    Args:
        key: Key of the call.
        strength: Scalar, 1, or 0 where the posterior mean is asked for.
    """

    key: Tensor
    strength: Tensor

    def perturbation(self, weight: SampledWeight) -> Tensor:
        """One draw of the weight minus its mean."""
        draw = weight.posterior.perturbation(weight.variables, random.fold_in(self.key, weight.index))
        return self.strength * draw

    def perturbations(self, weights: Weights, names: Iterable[str]) -> Values:
        """One draw minus the mean of those of the named weights that are sampled."""
        found = {name: weights.get(name) for name in names}
        return {name: self.perturbation(weight) for name, weight in found.items() if isinstance(weight, SampledWeight)}

    def normal(self, shape: Sequence[Any], stream: int, of_examples: bool = False) -> Tensor:
        """Standard normal noise, of each example along the first axis if asked for.

        Streams from `FIRST_FREE_STREAM` up are not used by any weight.
        """
        key = random.fold_in(self.key, stream)
        return self.strength * random.normal(shape, random.of_examples(key) if of_examples else key)

    def signs(self, shape: Sequence[Any], stream: int) -> Tensor:
        """Random signs for each example, along the first axis."""
        return random.rademacher(shape, random.of_examples(random.fold_in(self.key, stream)))


FIRST_FREE_STREAM = 1_000
"""Streams below belong to the weights' own perturbations, by their index."""

StageEstimator = Callable[[Stage, dict[str, Any], Weights, Tensor, Noise, int], Tensor]


def sample_weights(weights: Weights, noise: Noise) -> Values:
    """One value of every sampled weight, in float32."""
    return {
        name: ops.cast(ops.convert_to_tensor(weights[name].mean), "float32") + draw
        for name, draw in noise.perturbations(weights, weights).items()
    }


def mirrored_reparameterization(
    stage: Stage, means: dict[str, Any], weights: Weights, inputs: Tensor, noise: Noise, stream: int
) -> Tensor:
    """One weight draw `M + D` for every first example of a pair, and the antithetic `M - D` for every second.

    Each example sees the posterior; what is odd in `D` cancels between neighbours, at the price of no further noise and
    no further product. Antithetic variates: Hammersley and Morton 1956; in SVI: Wu et al. 2019, arXiv 1810.02555.
    """
    perturbations = noise.perturbations(weights, stage.weights)
    if not perturbations:
        return stage.apply(means, inputs)
    batch = ops.shape(inputs)[0]
    paired = ops.concatenate([inputs, inputs[: batch % 2]])  # an odd batch has one example without a neighbour
    halves = [
        stage.apply({**means, **{name: means[name] + sign * draw for name, draw in perturbations.items()}}, half)
        for sign, half in ((1.0, paired[0::2]), (-1.0, paired[1::2]))
    ]
    outputs = ops.stack(halves, axis=1)
    return ops.reshape(outputs, (-1, *ops.shape(outputs)[2:]))[:batch]


def flipout(stage: Stage, means: dict[str, Any], weights: Weights, inputs: Tensor, noise: Noise, stream: int) -> Tensor:
    """One perturbation for the batch, decorrelated across examples by random signs (Wen et al. 2018, eq. 4)."""
    outputs = stage.apply(means, inputs)
    perturbations = noise.perturbations(weights, stage.weights)
    if not perturbations:
        return outputs
    batch = ops.shape(inputs)[0]
    signs_in = noise.signs((batch, *feature_shape(inputs.shape, stage.input_axes)), stream)
    signs_out = noise.signs((batch, *feature_shape(outputs.shape, stage.output_axes)), stream + 1)
    shift = stage.apply(perturbations, inputs * ops.cast(signs_in, inputs.dtype))
    return outputs + shift * ops.cast(signs_out, outputs.dtype)


def local_reparameterization(
    stage: Stage, means: dict[str, Any], weights: Weights, inputs: Tensor, noise: Noise, stream: int
) -> Tensor:
    """Gaussian noise of the right mean and variance on each output (Kingma et al. 2015, eq. 6)."""
    outputs = stage.apply(means, inputs)
    found = {name: weights.get(name) for name in stage.weights}
    scales = {
        name: weight.posterior.scale(weight.variables)
        for name, weight in found.items()
        if isinstance(weight, SampledWeight)
    }
    if not scales:
        return outputs
    deviation = _propagate_scales(stage, scales, inputs)
    draw = noise.normal(ops.shape(outputs), stream, of_examples=True)
    return outputs + deviation * ops.cast(draw, outputs.dtype)


def rank1(stage: Stage, means: dict[str, Any], weights: Weights, inputs: Tensor, noise: Noise, stream: int) -> Tensor:
    """Random factors on the inputs and outputs of each example (Dusenberry et al. 2020, eq. 4)."""
    name = stage.weights[0]
    weight = weights.get(name)
    if not isinstance(weight, FactoredWeight):
        return stage.apply(means, inputs)
    if is_ragged(inputs):  # padded and cut again: the noise of a place is that of its row, whatever comes after it
        return cut_as(rank1(stage, means, weights, inputs.to_tensor(), noise, stream), inputs)
    output_factor = _factor(weight, "output", inputs, noise, stream + 1)
    if stage.vocabulary is None:
        input_factor = _factor(weight, "input", inputs, noise, stream)
        outputs = stage.apply({name: means[name]}, inputs * ops.cast(input_factor, inputs.dtype))
    else:
        outputs = stage.apply({name: means[name]}, inputs)
        outputs = outputs * ops.cast(_token_factor(weight, inputs, noise, stream), outputs.dtype)
    outputs = outputs * ops.cast(output_factor, outputs.dtype)
    return stage.add_bias(outputs, means["bias"]) if "bias" in stage.weights else outputs


def _factor(weight: FactoredWeight, side: str, inputs: Tensor, noise: Noise, stream: int) -> Tensor:
    """The factor of one side for each example, or one for all where whole functions are asked for."""
    is_whole = draws_whole_functions()
    batch = 1 if is_whole else ops.shape(inputs)[0]
    shape = weight.posterior.factor_mean(weight.variables, side).shape
    return weight.posterior.factor(
        weight.variables, side, noise.normal((batch, *shape), stream, of_examples=not is_whole)
    )


def _token_factor(weight: FactoredWeight, tokens: Tensor, noise: Noise, stream: int) -> Tensor:
    """The factor of the token at each place, of shape `(*tokens, 1)`.

    Places draw by themselves, also where one token stands twice: a draw of the vocabulary for each example would cost
    more than the network. Where whole functions are asked for, one draw of the vocabulary serves all.
    """
    tokens = ops.cast(tokens, "int32")
    posterior, variables = weight.posterior, weight.variables
    if draws_whole_functions():
        shape = posterior.factor_mean(variables, "input").shape
        vocabulary = posterior.factor(variables, "input", noise.normal(shape, stream))
        return ops.expand_dims(ops.take(vocabulary, tokens, axis=0), -1)
    own = posterior.factor(
        variables, "input", noise.normal(ops.shape(tokens), stream, of_examples=True), entries=tokens
    )
    return ops.expand_dims(own, -1)


def _propagate_scales(stage: Stage, scales: Values, inputs: Tensor) -> Tensor:
    """Standard deviation of each output, `sqrt(x^2 @ scale^2)`, with a finite gradient where it is zero."""
    if is_sparse(inputs):  # JAX cannot compile the square of one
        inputs = ops.convert_to_tensor(inputs, sparse=False)
    if keras.backend.standardize_dtype(inputs.dtype) == "float16":
        return _propagate_scales_in_half_precision(stage, scales, inputs)
    variance = stage.apply({name: ops.square(scale) for name, scale in scales.items()}, ops.square(inputs))
    return _safe_sqrt(variance)


def _propagate_scales_in_half_precision(stage: Stage, scales: Values, inputs: Tensor) -> Tensor:
    """The same with scales and inputs brought to at most one: squares of float16 over- and underflow early."""
    largest_input = ops.maximum(ops.max(ops.abs(inputs)), ops.cast(1.0, inputs.dtype))
    largest = ops.max(ops.stack([ops.max(scale) for scale in scales.values()]))
    # A bias multiplies the constant input one, so it is divided by the inputs' unit as well.
    unit_input = ops.cast(largest_input, "float32")
    squares = {
        name: ops.square(scale / largest / (unit_input if name == "bias" else 1.0)) for name, scale in scales.items()
    }
    variance = stage.apply(squares, ops.square(inputs / largest_input))
    return _safe_sqrt(variance) * ops.cast(unit_input * largest, inputs.dtype)


def _safe_sqrt(variance: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero, as the mean gradient over the noise is.

    Below the smallest variance the root may be flushed to zero and its gradient overflow, so that counts as zero.
    """
    smallest = 1e-7 if keras.backend.standardize_dtype(variance.dtype) == "float16" else 1e-30
    positive = variance > smallest
    return ops.where(positive, ops.sqrt(ops.where(positive, variance, ops.ones_like(variance))), 0.0)


STAGE_ESTIMATORS: dict[str, StageEstimator] = {
    "reparameterization": mirrored_reparameterization,
    "flipout": flipout,
    "local_reparameterization": local_reparameterization,
    "rank1": rank1,
}
"""Estimators that need the layer's affine stages."""

ESTIMATORS = ("reparameterization", "flipout", "local_reparameterization")
"""Estimators that a user may choose for a weight posterior; rank-1 factors follow from their posterior."""
