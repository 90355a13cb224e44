"""Distributions of TensorFlow Probability: each has a bijector from the real line onto its support."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import maximum, minimum
from bdl.svi.supports.base import Support, Tensor
from bdl.svi.supports.intervals import Above, Real, interval
from bdl.svi.supports.library import Library
from bdl.svi.supports.matrices import CorrelationCholesky, CorrelationMatrix, LowerCholesky, PositiveDefinite
from bdl.svi.supports.vectors import Mapped, Ordered, Product, Simplex


class TFP(Library):
    """`tensorflow_probability.distributions`."""

    backend = "tensorflow"

    def support(self, distribution: Any) -> Support | None:
        """Looks into what a distribution is made of, then at its bijector."""
        import tensorflow_probability as tfp

        tfd = tfp.distributions
        if isinstance(distribution, tfd.MixtureSameFamily):
            components = distribution.components_distribution
            inner = self.support(components)
            return None if inner is None else inner.over_mixture(-1 - len(components.event_shape))
        if isinstance(distribution, tfd.Mixture):
            return _common([self.support(component) for component in distribution.components])
        if isinstance(distribution, tfd.Blockwise):
            return _side_by_side([(self.support(part), part.event_shape) for part in distribution.distributions])
        if isinstance(distribution, (tfd.Dirichlet, tfd.RelaxedOneHotCategorical)):
            return Simplex()  # TFP 0.25 cannot make their bijector with NumPy 2.4
        if isinstance(distribution, (tfd.Independent, tfd.Sample, tfd.BatchReshape, tfd.BatchBroadcast, tfd.Masked)):
            inner = self.support(distribution.distribution)
            if inner is None or inner.is_the_same_everywhere or isinstance(distribution, tfd.Independent):
                return inner
        try:
            bijector = distribution.experimental_default_event_space_bijector()
        except TypeError:  # the same fault of TFP with NumPy 2.4, here of supports that bdl has no map onto
            return None
        if isinstance(distribution, tfd.TransformedDistribution) and isinstance(bijector, tfp.bijectors.Chain):
            is_own = bijector.bijectors[0] is distribution.bijector
            if is_own and isinstance(self.support(distribution.distribution), Real):
                return _of_bijector(distribution.bijector)
        return None if bijector is None else _of_bijector(bijector)

    def log_prob(self, distribution: Any, value: Tensor) -> Tensor:
        """In the wider precision of the two: TFP makes float32 of `Normal(0.0, 1.0)`, and mixes no precisions."""
        value = ops.convert_to_tensor(value)
        ours, its = value.dtype, distribution.dtype
        if ours.is_floating and its.is_floating and ours.size > its.size:
            distribution = _with_precision(distribution, ours.name)
        return distribution.log_prob(ops.cast(value, distribution.dtype))

    def sample(self, distribution: Any, num_samples: int, key: Tensor) -> Tensor:
        """By TFP's stateless generators."""
        return distribution.sample(num_samples, seed=ops.cast(key, "int32"))

    def is_discrete(self, distribution: Any) -> bool:
        """By a base class without a public name: the dtype does not tell, a Poisson distribution's is a float."""
        names = {cls.__name__ for cls in type(distribution).__mro__}
        return "DiscreteDistributionMixin" in names or any(self.is_discrete(part) for part in _parts(distribution))

    def values(self, distribution: Any) -> Tensor | None:
        """Of distributions whose number of values is known before a compiled function runs."""
        import tensorflow as tf
        import tensorflow_probability as tfp

        tfd = tfp.distributions
        while isinstance(distribution, (tfd.Independent, tfd.Sample, tfd.BatchReshape, tfd.BatchBroadcast, tfd.Masked)):
            distribution = distribution.distribution
        if isinstance(distribution, tfd.FiniteDiscrete):
            return distribution.outcomes
        if isinstance(distribution, tfd.OneHotCategorical):
            return tf.eye(int(distribution.event_shape[-1]), dtype=distribution.dtype)
        if isinstance(distribution, tfd.Categorical):
            weights = distribution.probs if distribution.logits is None else distribution.logits
            number = int(weights.shape[-1])
        elif isinstance(distribution, tfd.Bernoulli):
            number = 2
        elif isinstance(distribution, tfd.Binomial):
            totals = np.unique(tf.get_static_value(distribution.total_count))
            if len(totals) != 1 or totals[0] is None:
                return None
            number = int(totals[0]) + 1
        else:
            return None
        return tf.range(number, dtype=distribution.dtype)

    def as_drawn(self, distribution: Any, counts: Tensor) -> Tensor:
        """TFP's are floats, but where a distribution says otherwise."""
        return ops.cast(counts, distribution.dtype)

    def is_joint(self, distribution: Any) -> bool:
        """By their base class."""
        import tensorflow_probability as tfp

        return isinstance(distribution, tfp.distributions.JointDistribution)

    def as_normal(self, distribution: Any) -> tuple[Tensor, Tensor] | None:
        """Normal and log-normal distributions, alone, repeated or with their axes joined."""
        import tensorflow_probability as tfp

        tfd = tfp.distributions
        while isinstance(distribution, (tfd.Independent, tfd.LogNormal)):
            distribution = distribution.distribution
        inner = distribution
        while isinstance(inner, (tfd.Independent, tfd.Sample)):
            inner = inner.distribution
        if not isinstance(inner, (tfd.Normal, tfd.MultivariateNormalDiag)):
            return None
        return distribution.mean(), distribution.stddev()


def _common(supports: list[Support | None]) -> Support | None:
    """The support of a mixture of different distributions, which must have the same one everywhere."""
    first = supports[0]
    is_common = first is not None and all(
        support is not None and support.is_the_same_everywhere and repr(support) == repr(first) for support in supports
    )
    return first if is_common else None


def _side_by_side(parts: list[tuple[Support | None, Any]]) -> Support | None:
    known = [(support, math.prod(shape)) for support, shape in parts if support is not None]
    return Product(known) if len(known) == len(parts) else None


def _parts(distribution: Any) -> list[Any]:
    """The distributions that a distribution is made of and whose values it has."""
    for name in ("components_distribution", "distribution"):
        if hasattr(distribution, name):
            return [getattr(distribution, name)]
    for name in ("components", "distributions"):
        if hasattr(distribution, name):
            return list(getattr(distribution, name))
    return []


def _with_precision(distribution: Any, dtype: str) -> Any:
    """A copy whose parameters, and those of the distributions inside, have this dtype of floats."""
    import tensorflow_probability as tfp

    def converted(value: Any) -> Any:
        if isinstance(value, tfp.distributions.Distribution):
            return _with_precision(value, dtype)
        if isinstance(value, (list, tuple)):
            return [converted(each) for each in value]
        return value

    changed = {}
    for name, kind in type(distribution).parameter_properties().items():
        value = distribution.parameters.get(name)
        if value is None or kind.specifies_shape:
            continue
        if not kind.is_tensor:
            changed[name] = converted(value)
        elif any(ops.is_tensor(each) for each in keras.tree.flatten(value)):
            changed[name] = ops.cast(value, dtype)
        else:
            changed[name] = np.asarray(value, dtype)  # with all its digits
    return distribution.copy(**changed)


def _of_bijector(bijector: Any) -> Support | None:
    """The support that one of TFP's bijectors maps the real line onto; TFP's own map where bdl has none."""
    import tensorflow_probability as tfp

    tfb = tfp.bijectors
    chain = [link for link in _links(bijector) if not isinstance(link, tfb.Identity)]
    if not chain:
        return Real()
    if len(chain) == 1 and isinstance(chain[0], tfb.Sigmoid):  # its bounds may be infinite, where it has no number
        low, high = chain[0].low, chain[0].high
        return interval(0.0 if low is None else low, 1.0 if high is None else high)
    known = _known_chain(chain)
    if known is not None:
        return known
    ranks = bijector.forward_min_event_ndims, bijector.inverse_min_event_ndims
    if ranks == (0, 0):
        # A map of single numbers is monotone, so its bounds are where it takes the two ends of the line.
        ends = [bijector.forward(end) for end in (-np.inf, np.inf)]
        return interval(minimum(*ends), maximum(*ends))
    if not all(isinstance(rank, (int, np.integer)) for rank in ranks):  # of a joint distribution
        return None
    return Mapped(
        int(ranks[1]),
        lambda event: tuple(bijector.inverse_event_shape(event)),
        bijector.forward,
        bijector.inverse,
        lambda u, value: bijector.forward_log_det_jacobian(u, event_ndims=ranks[0]),
    )


def _known_chain(chain: list[Any]) -> Support | None:
    """The support of a chain of bijectors for which bdl has a map of its own."""
    import tensorflow_probability as tfp

    tfb = tfp.bijectors
    makes_square = any(isinstance(link, tfb.CholeskyOuterProduct) for link in chain)
    if isinstance(chain[-1], tfb.CorrelationCholesky):
        return CorrelationMatrix() if makes_square else CorrelationCholesky()
    if isinstance(chain[-1], tfb.FillTriangular) and len(chain) > 1 and isinstance(chain[-2], tfb.TransformDiagonal):
        return PositiveDefinite() if makes_square else LowerCholesky()
    if len(chain) > 1:
        return None
    if isinstance(chain[0], (tfb.Exp, tfb.Softplus)):
        return Above(0.0)
    if isinstance(chain[0], (tfb.SoftmaxCentered, tfb.IteratedSigmoidCentered)):
        return Simplex()
    return Ordered() if isinstance(chain[0], tfb.Ascending) else None


def _links(bijector: Any) -> list[Any]:
    """The bijectors of a chain of chains; the one that is applied first is the last."""
    import tensorflow_probability as tfp

    if not isinstance(bijector, tfp.bijectors.Chain):
        return [bijector]
    return [link for part in bijector.bijectors for link in _links(part)]
