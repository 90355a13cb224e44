"""The evidence lower bound: the only place where NLL and KL meet.

Per example, in nats, with `N` the number of training examples:

    -ELBO / N = mean NLL + (sum of the weights' KL) / N + mean of the examples' local KL
    loss      = mean NLL + T * (the two KL terms)

Weights are global latent variables: one posterior serves all N examples, so their KL is divided by N. Alignments and
codes are local: each example pays its own. T is the effective temperature; T = 1 is Bayes. The ELBO is always reported
at T = 1, whatever T the loss was trained with.

A step may draw the whole network S times. `objective="elbo"` takes the mean over the draws: the same formula with less
noise in its gradient. `objective="multi_sample"` takes it inside the logarithm: with draw s and example n

    loss_n = -log (1/S) sum_s exp(-(nll_ns + T * local_ns)) + T * (sum of the weights' KL) / N

Where layers report `log q(z_s | x) - log p(z_s)` of their own draw, and weights are not random, this is the importance
weighted bound (Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519, eq. 8). For random weights it is the objective
PAC^m-Bayes (Morningstar, Alemi and Dillon 2022, arXiv 2010.09629), which trains the predictive mixture and not the mean
NLL of its components: no lower bound of the log evidence. The ELBO is reported whatever the objective.

A prior of the likelihood's own scale (its `penalty()`, in nats) is charged as the weights' KL is, and part of it here.

With free bits F > 0 the loss has max(mean local KL, F) in the local term's place (Kingma et al. 2016, arXiv 1606.04934,
section on free bits; one group). It is not the negative ELBO any more; the ELBO is reported without them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.keras_internals import flatten_layers, keras_mask, num_replicas
from bdl.likelihoods import Likelihood
from bdl.random import Tensor
from bdl.schedules import CyclicalWarmup, KLSchedule, LinearWarmup, MinibatchWeights

__all__ = [
    "ELBO",
    "CyclicalWarmup",
    "Evidence",
    "KLSchedule",
    "LinearWarmup",
    "MinibatchWeights",
    "evidence",
    "kl_divergence",
    "local_kl",
]

OBJECTIVES = ("elbo", "multi_sample")

_register = keras.saving.register_keras_serializable(package="bdl")


def kl_divergence(model: keras.Layer) -> Tensor:
    """Divergence of all weight posteriors of a model from their priors.

    Args:
        model: A built Keras model or layer. A shared layer counts once.

    Returns:
        Scalar, total over the model, in nats; zero if no layer has a `kl_divergence` method.

    Example:
    >>> layer = bdl.layers.DenseFlipout(3)
    >>> layer.build((None, 4))
    >>> model = keras.Sequential([layer, layer])
    >>> bool(kl_divergence(model) == layer.kl_divergence())
    True
    """
    terms = [layer.kl_divergence() for layer in flatten_layers(model) if hasattr(layer, "kl_divergence")]
    return sum(terms, ops.zeros(()))


@dataclass(frozen=True)
class Evidence:
    """The parts of the ELBO on a batch; all scalars, in nats.

    Args:
        loss: Tempered objective, per example.
        nll: Mean negative log likelihood, per example.
        kl: Total divergence: the weights', with the penalty of the likelihood's scale, plus N times the mean local one.
        elbo: Evidence lower bound at T = 1, per example; given point estimates, and less their penalty, where there are
            some.
        temperature: T.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    elbo: Tensor
    temperature: Tensor


def evidence(
    nll: Tensor,
    weights_kl: Tensor,
    num_examples: Tensor | int,
    temperature: Tensor | float = 1.0,
    local_kl: Tensor | None = None,
    sample_weight: Tensor | None = None,
    free_bits: float = 0.0,
    objective: str = "elbo",
) -> Evidence:
    """Puts the parts together; see the module's formula.

    Args:
        nll: Of each example, `(batch,)`, or of each draw of the network, `(draws, batch)`; in nats.
        weights_kl: Scalar, total, in nats.
        num_examples: Number of training examples.
        temperature: T.
        local_kl: Of each example and draw, the shape of `nll`, in nats.
        sample_weight: `(batch,)`; scales an example's NLL and local KL, never the weights' KL.
        free_bits: Rate below which the loss does not reward a smaller mean local KL, in nats per example.
        objective: `"elbo"` or `"multi_sample"`. They differ in `loss`, and only for more than one draw.

    Example:
    >>> parts = evidence(nll=np.array([1.0, 3.0], "float32"), weights_kl=50.0, num_examples=100, temperature=0.5)
    >>> float(parts.loss), float(parts.elbo)
    (2.25, -2.5)
    """

    def batch_mean(values: Tensor) -> Tensor:
        values = ops.convert_to_tensor(values)
        return ops.mean(values if sample_weight is None else values * ops.cast(sample_weight, values.dtype))

    nll = ops.convert_to_tensor(nll)
    mean_nll = batch_mean(nll)
    size = ops.cast(num_examples, "float32")
    kl_per_example = charged = weights_kl / size
    if local_kl is not None:
        local = batch_mean(local_kl)
        # Not max(local, 0) without free bits: a divergence estimated from samples may be negative.
        charged = charged + (ops.maximum(local, free_bits) if free_bits else local)
        kl_per_example = kl_per_example + local
    temperature = ops.cast(temperature, "float32")
    loss = mean_nll + temperature * charged
    if objective == "multi_sample" and len(nll.shape) == 2:
        each = nll if local_kl is None else nll + temperature * ops.convert_to_tensor(local_kl)
        loss = batch_mean(mixture_nll(each)) + temperature * weights_kl / size
    return Evidence(
        loss=loss,
        nll=mean_nll,
        kl=kl_per_example * size,
        elbo=-(mean_nll + kl_per_example),
        temperature=temperature,
    )


def mixture_nll(nll: Tensor) -> Tensor:
    """Negative log likelihood of each example under the mixture of all draws, `-log (1/S) sum_s exp(-nll_s)`.

    Args:
        nll: Of each draw and example, `(draws, batch)`, in nats.

    Returns:
        `(batch,)`, in nats; never above the mean over the draws.

    Example:
    >>> float(mixture_nll(-np.log(np.array([[0.2], [0.6]])))[0])  # -log 0.4
    0.9163
    """
    nll = ops.convert_to_tensor(nll)
    return math.log(nll.shape[0]) - ops.logsumexp(-nll, axis=0)


@_register
class ELBO(keras.losses.Loss):
    """The negative ELBO as a Keras loss, for a plain `keras.Model` or a custom training loop.

    `bdl.VariationalModel` does the same and more (logs of the parts, schedules, inference of N); this is for code that
    must keep its own model class.

    Args:
        likelihood: `bdl.likelihoods.Likelihood` of the labels given the outputs. Under `compile` it may not have
            weights of its own (a learned scale), for the compiled model would not train them. Where the model holds
            them, the `penalty()` of their prior counts with the weights' KL.
        num_examples: Positive number of training examples, N. Without it the KL cannot be scaled, so it has no default.
        kl_weight: Temperature T: non-negative, 1 is Bayes. A schedule needs `VariationalModel`.
        model: The network whose weights' KL belongs in the loss, and which is compiled with it. A loop of your own
            takes `evidence(...).loss`; a model around this one needs `VariationalModel` if layers have a local KL.
        free_bits: As of `VariationalModel`; above 0 the loss is not the ELBO any more, here `val_loss` neither.
        name: Name of the loss.

    Returns:
        Scalar, per example, in nats.

    Raises:
        ValueError: if `num_examples` is no positive integer, `kl_weight` or `free_bits` no such number, `model` is
            missing on a call, or the likelihood's weights would go untrained.

    Source: Graves 2011, "Practical variational inference for neural networks", eq. 3; N and minibatches as in
    Blundell et al. 2015, section 3.4.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> network.compile("adam", loss=ELBO(bdl.likelihoods.Categorical(), num_examples=100, model=network))
    >>> history = network.fit(np.ones((100, 4)), np.zeros(100, int), verbose=0)
    """

    def __init__(
        self,
        likelihood: Likelihood,
        num_examples: int,
        kl_weight: float = 1.0,
        model: keras.Model | None = None,
        free_bits: float = 0.0,
        name: str = "elbo",
    ) -> None:
        super().__init__(name=name, reduction="none")
        self.likelihood = check_likelihood(likelihood)
        self.num_examples = check_num_examples(num_examples)
        if isinstance(kl_weight, KLSchedule):
            raise ValueError(
                "`kl_weight` must be a number here: a schedule needs a step counter. Use VariationalModel."
            )
        self.kl_weight = check_kl_weight(kl_weight)
        self.free_bits = check_free_bits(free_bits)
        self.model = model

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of a batch; under a distribution strategy the replica's share of it.

        To the loss that a model was compiled with Keras adds the sums of what layers gave to `add_loss`. The local KL
        has its place here already, so that its sum is taken off before: a loop of your own takes `evidence(...).loss`.
        """
        loss = self.evidence(y_true, y_pred, sample_weight).loss
        model: Any = self.model
        if any(each is self for each in keras.tree.flatten(getattr(model, "loss", None))):
            local = local_kl(model.losses)
            loss = loss if local is None else loss - ops.sum(local)
        return loss / num_replicas()

    def evidence(self, y: Tensor, outputs: Tensor, sample_weight: Tensor | None = None) -> Evidence:
        """All parts of the ELBO on a batch, for custom loops and logs.

        Args:
            y: Labels, `(batch, ...)`.
            outputs: Network outputs; a Keras mask on them is honoured.
            sample_weight: `(batch,)` or None.
        """
        if self.model is None:
            raise ValueError("`model` is None, so the KL is unknown. Build the loss with ELBO(..., model=network).")
        trained = {id(weight) for weight in self.model.trainable_weights}
        if any(id(weight) not in trained for weight in self.likelihood.trainable_weights):
            raise ValueError(
                f"`likelihood` {type(self.likelihood).__name__} learns a scale that `model` does not hold, so it would "
                "stay untrained. Use VariationalModel, fix the scale, or let the network predict it."
            )
        nll = self.likelihood.nll(y, outputs, keras_mask(outputs))
        weights_kl = kl_divergence(self.model) + self.likelihood.penalty()
        examples_kl = local_kl(self.model.losses)
        weight = check_sample_weight(sample_weight)
        return evidence(nll, weights_kl, self.num_examples, self.kl_weight, examples_kl, weight, self.free_bits)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration without the model, which holds the loss and not the other way round."""
        return {
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "num_examples": self.num_examples,
            "kl_weight": self.kl_weight,
            "free_bits": self.free_bits,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ELBO:
        """Builds the loss again; set `.model` before use."""
        likelihood = keras.saving.deserialize_keras_object(config["likelihood"])
        return cls(**{**config, "likelihood": likelihood})


def local_kl(losses: list[Tensor], of_draws: bool = False) -> Tensor | None:
    """Sum of the per-example divergences `(batch,)` that layers reported by `add_loss`; None if there are none.

    A layer with a local latent variable (an alignment, a code) reports one number for each example. Scalars in the same
    list are regularizers.

    Args:
        losses: Of a model.
        of_draws: True for the divergences of several draws of the network, `(draws, batch)`.
    """
    terms = [loss for loss in losses if len(loss.shape) == (2 if of_draws else 1)]
    return sum(terms[1:], terms[0]) if terms else None


def check_likelihood(likelihood: Any) -> Likelihood:
    """Checks the type of a likelihood argument."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    raise ValueError(
        f"`likelihood` must be a bdl.likelihoods.Likelihood instance, such as Categorical() or Normal(), "
        f"not {likelihood!r}."
    )


def check_num_examples(num_examples: Any) -> int:
    """Checks the number of training examples."""
    is_integer = hasattr(num_examples, "__index__") and not isinstance(num_examples, bool)
    if not is_integer or int(num_examples) <= 0:
        raise ValueError(
            f"`num_examples` must be the number of training examples, a positive integer, not {num_examples!r}. "
            "It divides the KL; without it the temperature of the ELBO is unknown."
        )
    return int(num_examples)


def check_kl_weight(kl_weight: Any) -> float:
    """Checks a constant temperature."""
    if not _is_finite_and_not_negative(kl_weight):
        raise ValueError(
            f"`kl_weight` must be a finite number >= 0 (the temperature T; 1 is Bayes) or a bdl.elbo.KLSchedule, "
            f"not {kl_weight!r}. Do not divide it by the number of examples: the ELBO does."
        )
    return float(kl_weight)


def check_free_bits(free_bits: Any) -> float:
    """Checks the rate that local divergences may have for free."""
    if not _is_finite_and_not_negative(free_bits):
        raise ValueError(f"`free_bits` must be a finite number >= 0, in nats per example, not {free_bits!r}.")
    return float(free_bits)


def check_num_samples(num_samples: Any) -> int:
    """Checks the number of draws of the network in a training step."""
    is_integer = hasattr(num_samples, "__index__") and not isinstance(num_samples, bool)
    if not is_integer or int(num_samples) <= 0:
        raise ValueError(
            f"`num_samples` must be a positive integer (draws of the weights in a training step), not {num_samples!r}."
        )
    return int(num_samples)


def check_objective(objective: Any, free_bits: float) -> str:
    """Checks the name of an objective, and that it goes with free bits."""
    if objective not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {OBJECTIVES}, not {objective!r}.")
    if objective == "multi_sample" and free_bits:
        raise ValueError(
            f"`free_bits` must be 0 with objective='multi_sample', not {free_bits!r}: they bound the batch mean of the "
            "local KL, which does not stand apart there: it is inside the logarithm of each example."
        )
    return objective


def check_sample_weight(sample_weight: Tensor | None) -> Tensor | None:
    """Brings sample weights to `(batch,)`; weights of single events would make an example's NLL ambiguous."""
    if sample_weight is None:
        return None
    sample_weight = ops.convert_to_tensor(sample_weight)
    if len(sample_weight.shape) == 2 and sample_weight.shape[-1] == 1:
        sample_weight = ops.squeeze(sample_weight, -1)
    if len(sample_weight.shape) != 1:
        raise ValueError(
            f"`sample_weight` must have one weight for each example, shape (batch,), not {tuple(sample_weight.shape)}. "
            "To leave out single events of a sequence, use a Keras mask."
        )
    return sample_weight


def _is_finite_and_not_negative(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)
