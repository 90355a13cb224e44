"""The likelihood of events that follow from a latent alignment: one output and one weight for each of its values.

A layer with `decoder=` (`bdl.layers.LatentAttention`) hands over what follows from each alignment k in one tensor,

    outputs[..., k, :] = [outputs of the decoder, log_weight, role]

and this likelihood sums. With l_k = log p(y | z = k) of an event and w_k = exp(log_weight_k):

    MIXTURE       log sum_k w_k exp(l_k)                      w_k = p(z = k | x): the exact marginal likelihood
    EXPECTATION   sum_k w_k l_k                               w_k = q(z = k | x, y): the first term of the exact ELBO
    SAMPLE        sum_s w_s (l_s - c_s) + mean_s c_s          c_s: mean of the other samples' l, without gradient
    BASELINE      its l is the c of all samples               l at the mean of z, as soft attention has it

Weights of samples are `w_s = exp(log q(z_s) - stop_gradient(log q(z_s))) / S`: of value 1 / S and of the score
function's gradient (Foerster et al. 2018, "DiCE", eq. 6), so that the gradient of the third line is REINFORCE's with
its control variate (Williams 1992; Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!").
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.likelihoods.base import Likelihood, expand_to_rank
from bdl.likelihoods.endings import Ending
from bdl.likelihoods.frozen_mixture import FrozenDistribution, FrozenMixture
from bdl.random import Tensor

MIXTURE, EXPECTATION, SAMPLE, BASELINE = 0.0, 1.0, 2.0, 3.0
NUM_EXTRAS = 2
"""Columns that `pack` adds."""

_register = keras.saving.register_keras_serializable(package="bdl")


def pack(outputs: Tensor, log_weight: Tensor, role: float) -> Tensor:
    """Outputs of a decoder with what a `Mixture` needs to know of each alignment.

    Args:
        outputs: `(..., alignments, units)`.
        log_weight: `(..., alignments)`, in nats.
        role: What the alignments are; one of this module's constants.

    Returns:
        `(..., alignments, units + 2)`, float32.
    """
    outputs, log_weight = ops.cast(outputs, "float32"), ops.cast(log_weight, "float32")
    log_weight = ops.expand_dims(log_weight, -1)
    return ops.concatenate([outputs, log_weight, role * ops.ones_like(log_weight)], axis=-1)


@_register
class Mixture(Likelihood):
    """The likelihood of events given a latent alignment, summed over the alignments.

    Args:
        component: Likelihood of an event given its alignment.
        **kwargs: `name` of the layer.

    Labels: as the component's. Outputs: `(batch, ..., alignments, units + 2)`, of a layer with `decoder=`.

    Raises:
        ValueError: if `component` is no likelihood, or itself a mixture.

    Source: Deng et al. 2018, "Latent alignment and variational attention", arXiv 1807.03756, sections 3 and 4.

    Example:
    >>> logits = np.log([[[0.9, 0.1], [0.2, 0.8]]])  # one event with two alignments
    >>> outputs = pack(logits, np.log([[0.5, 0.5]]), MIXTURE)
    >>> likelihood = Mixture(bdl.likelihoods.Categorical())
    >>> round(float(keras.ops.exp(-likelihood.nll(np.array([0]), outputs)[0])), 4)  # (0.9 + 0.2) / 2
    0.55
    """

    def __init__(self, component: Likelihood, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(component, Likelihood) or isinstance(component, Mixture):
            raise ValueError(
                f"`component` must be the bdl.likelihoods.Likelihood of one event, such as Categorical(), not "
                f"{component!r}."
            )
        self.component = component
        self.is_classifier = component.is_classifier  # type: ignore[misc]
        self.has_class_axis = component.has_class_axis  # type: ignore[misc]

    def log_prob(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Returns the log marginal of each event, or an estimate of its bound for the gradient: `(batch, ...)`.

        Where the component gives NaN or -inf for an invalid label, so does the mixture.
        """
        outputs, log_weight, role = _unpack(outputs)
        log_prob = self._of_each(y, outputs)
        marginal = ops.logsumexp(log_weight + log_prob, axis=-1)
        return ops.where(role[..., 0] == MIXTURE, marginal, _expectation(log_prob, log_weight, role))

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """The component's, in nats, alignments summed out: the logarithm of what `mean` gives."""
        outputs, log_weight, role = _unpack(ops.cast(outputs, "float32"))
        log_weight = ops.where(role == BASELINE, -float("inf"), log_weight)
        each = self.component.log_probabilities(outputs)  # (batch, ..., alignments, classes) or (..., labels, 2)
        axis = len(log_weight.shape) - 1
        return ops.logsumexp(expand_to_rank(log_weight, len(each.shape)) + each, axis=axis)

    def some_label(self, y_shape: tuple[int, ...], output_shape: tuple[int | None, ...]) -> Any:
        """The component's."""
        return self.component.some_label(y_shape, self._component_shape(output_shape))

    def following(self, ending: Ending) -> Mixture:
        """The same for the decoder's outputs."""
        component = self.component.following(ending)
        return self if component is self.component else Mixture(component, name=self.name)

    def has_label(self, y: Tensor, output_shape: tuple[int | None, ...]) -> Tensor | None:
        """Asks the component."""
        return self.component.has_label(y, self._component_shape(output_shape))

    def penalty(self) -> Tensor:
        """The component's."""
        return self.component.penalty()

    def null_nll(self, y: np.ndarray) -> np.ndarray:
        """The component's: constant outputs are the same whatever the alignment."""
        return self.component.null_nll(y)

    def posterior(self, y: Tensor, outputs: Tensor) -> Tensor:
        """`p(z | x, y)`, proportional to `p(z | x) p(y | z, x)`: the alignment given the observed event too.

        Args:
            y: Labels, `(batch, ...)`.
            outputs: Of the network outside training, whose weights are `p(z | x)`.

        Returns:
            Probabilities, `(batch, ..., alignments)`.

        Example:
        >>> outputs = pack(np.log([[[0.9, 0.1], [0.2, 0.8]]]), np.log([[0.5, 0.5]]), MIXTURE)
        >>> posterior = Mixture(bdl.likelihoods.Categorical()).posterior(np.array([0]), outputs)
        >>> [round(float(p), 3) for p in posterior[0]]
        [0.818, 0.182]
        """
        outputs = ops.cast(outputs, "float32")
        y = self._align(ops.convert_to_tensor(y), outputs)
        outputs, log_weight, _ = _unpack(outputs)
        return ops.exp(ops.log_softmax(log_weight + self._of_each(y, outputs), axis=-1))

    def alignments(self, outputs: Tensor) -> Tensor:
        """`p(z | x)`, `(batch, ..., alignments)`, of outputs outside training, where there is one for each key.

        Soft attention has one alignment of weight 1 there, a Dirichlet one as many equal ones as samples.
        """
        return ops.exp(_unpack(ops.cast(outputs, "float32"))[1])

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of each event, alignments summed out; of outputs in training over q, which has seen the label."""
        outputs, log_weight, role = _unpack(ops.cast(outputs, "float32"))
        weight = ops.where(role == BASELINE, 0.0, ops.exp(log_weight))
        return ops.sum(ops.expand_dims(weight, -1) * self.component.mean(outputs), axis=-2)

    def variance(self, outputs: Tensor) -> Tensor:
        """Variance of each event: mean variance of the components, and variance of their means."""
        mean = ops.expand_dims(self.mean(outputs), -2)
        outputs, log_weight, _ = _unpack(ops.cast(outputs, "float32"))
        each = self.component.variance(outputs) + ops.square(self.component.mean(outputs) - mean)
        return ops.sum(ops.expand_dims(ops.exp(log_weight), -1) * each, axis=-2)

    def parameters(self, outputs: Tensor) -> dict[str, Tensor]:
        """The components' parameters and `log_weight`, with the axis of the alignments; a classifier's `p`."""
        if self.is_classifier:
            return {"p": self.mean(outputs)}
        outputs, log_weight, _ = _unpack(ops.cast(outputs, "float32"))
        return {**self.component.parameters(outputs), "log_weight": ops.expand_dims(log_weight, -1)}

    def distribution(self, parameters: dict[str, np.ndarray]) -> FrozenDistribution:
        """The mixture, with the methods of a frozen scipy.stats distribution."""
        parameters = dict(parameters)
        log_weight = parameters.pop("log_weight")
        return FrozenMixture(self.component.distribution(parameters), log_weight, axis=-2)

    def event_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The component's, without the axis of the alignments."""
        return self.component.event_shape(self._component_shape(output_shape))

    def mean_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Without the axis of the alignments."""
        return self.component.mean_shape(self._component_shape(output_shape))

    def check_labels(self, y: np.ndarray, output_shape: tuple[int | None, ...]) -> None:
        """Checks labels as the component does, and that the outputs are a mixture's.

        Raises:
            ValueError: if the labels do not fit, or the outputs have no axis for the alignments.
        """
        if len(output_shape) < 3 or (output_shape[-1] is not None and output_shape[-1] <= NUM_EXTRAS):
            raise ValueError(
                f"`likelihood` Mixture reads outputs that must have shape (batch, ..., alignments, units + "
                f"{NUM_EXTRAS}), as LatentAttention(..., decoder=...) gives them, not {tuple(output_shape)}. Without "
                f"a decoder use {type(self.component).__name__}() itself."
            )
        self.component.check_labels(y, self._component_shape(output_shape))

    def check_aligned(self, y_shape: tuple[int | None, ...], output_shape: tuple[int | None, ...]) -> None:
        """Lets the component compare, whose labels they are."""
        self.component.check_aligned(y_shape, self._component_shape(output_shape))

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "component": keras.saving.serialize_keras_object(self.component)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mixture:
        """Builds it again."""
        return cls(**{**config, "component": keras.saving.deserialize_keras_object(config["component"])})

    def _component_shape(self, output_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the outputs of one alignment."""
        *events, _, units = output_shape
        return (*events, None if units is None else units - NUM_EXTRAS)

    def _of_each(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Log probability of the event under each alignment, `(batch, ..., alignments)`."""
        if self.has_class_axis:
            is_index = len(y.shape) == len(outputs.shape) - 2
            labels = ops.expand_dims(y, -1 if is_index else -2)
            shape = ops.shape(outputs)
            return self.component.log_prob(ops.broadcast_to(labels, shape[:-1] if is_index else shape), outputs)
        y = ops.expand_dims(ops.cast(y, "float32"), -2)
        return ops.sum(self.component.log_prob(y, outputs), axis=-1)


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return packed[..., :-NUM_EXTRAS], packed[..., -2], packed[..., -1]


def _expectation(log_prob: Tensor, log_weight: Tensor, role: Tensor) -> Tensor:
    """The last three lines of the module's table; terms that the role does not have are zero."""
    is_baseline, is_sample = ops.cast(role == BASELINE, "float32"), ops.cast(role == SAMPLE, "float32")
    weight = ops.where(role == BASELINE, 0.0, ops.exp(log_weight))
    fixed = ops.stop_gradient(log_prob)
    others = ops.sum(is_sample * fixed, axis=-1, keepdims=True) - fixed
    leave_one_out = is_sample * others / ops.maximum(ops.sum(is_sample, axis=-1, keepdims=True) - 1.0, 1.0)
    soft = ops.sum(is_baseline * fixed, axis=-1, keepdims=True)
    has_soft = ops.max(is_baseline, axis=-1, keepdims=True)
    control = has_soft * soft + (1.0 - has_soft) * leave_one_out
    return ops.sum(weight * (log_prob - control) + ops.stop_gradient(weight) * control, axis=-1)
