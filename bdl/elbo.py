"""The evidence lower bound: the only place where NLL and KL meet.

Per example, in nats, with `N` the number of training examples:

    -ELBO / N = mean NLL + (sum of the weights' KL) / N + mean of the examples' local KL
    loss      = mean NLL + T * (the two KL terms)

The NLL of an example is the sum over its events and outputs that count, neither divided by their number: it is the log
likelihood of what was observed, to which the KL over N belongs. Void and masked events were not observed.

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

import contextlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.arguments import (
    check_free_bits,
    check_kl_weight,
    check_num_examples,
)
from bdl.keras_internals import (
    current_value,
    flatten_layers,
    is_concrete,
    is_tracing,
    mean_over_replicas,
    num_replicas,
    output_structure,
    rows_per_replica,
)
from bdl.latents import take_local_kl
from bdl.likelihoods.heads import Heads, Likelihoods
from bdl.protocols import HasKL
from bdl.random import Tensor
from bdl.schedules import CyclicalWarmup, KLSchedule, LinearWarmup, MinibatchWeights
from bdl.uncounted import note_objective

__all__ = [
    "ELBO",
    "CyclicalWarmup",
    "ELBOParts",
    "KLSchedule",
    "LinearWarmup",
    "MinibatchWeights",
    "elbo_parts",
    "kl_divergence",
]

_register = keras.saving.register_keras_serializable(package="bdl")


def kl_divergence(
    model: keras.Layer,
    trainable_variables: Sequence[Tensor] | None = None,
    non_trainable_variables: Sequence[Tensor] | None = None,
) -> Tensor:
    """Divergence of all weight posteriors of a model from their priors.

    It is a function of the model's variables alone, however often a layer was called. With values of the variables it
    is a pure function of them, which JAX can differentiate and compile.

    Args:
        model: A built Keras model or layer. A shared layer counts once.
        trainable_variables: Values in the place of `model.trainable_variables`, in their order; None takes the
            variables' own.
        non_trainable_variables: The same of `model.non_trainable_variables`.

    Returns:
        Scalar, total over the model, in nats; zero if no layer has a `kl_divergence` method.

    Raises:
        ValueError: if the values are not as many as the variables, or if JAX differentiates or compiles a function in
            which the divergence would be a constant.

    Example:
    >>> layer = bdl.layers.DenseFlipout(3)
    >>> layer.build((None, 4))
    >>> model = keras.Sequential([layer, layer])
    >>> bool(kl_divergence(model) == layer.kl_divergence())
    True
    """
    layers: list[Any] = [layer for layer in flatten_layers(model) if isinstance(layer, HasKL)]
    weights = [weight for layer in layers for weight in layer.trainable_variables] if is_tracing() else []
    with _values_of(model, trainable_variables, non_trainable_variables):
        terms = (ops.cast(layer.kl_divergence(), "float32") for layer in layers)
        total = sum(terms, ops.zeros((), dtype="float32"))
        is_constant = bool(weights) and all(is_concrete(current_value(weight)) for weight in weights)
    if is_constant:
        raise ValueError(
            "`trainable_variables` must be given where JAX differentiates or compiles the KL: without them it is a "
            "constant, whose gradient is zero. Pass the values that the function takes, as in "
            "kl_divergence(model, trainable_variables, non_trainable_variables) or ELBO.parts(y, outputs, "
            "trainable_variables=..., non_trainable_variables=...)."
        )
    return total


@contextlib.contextmanager
def _values_of(model: keras.Layer, trainable: Sequence[Tensor] | None, non_trainable: Sequence[Tensor] | None) -> Any:
    """Within this context the variables of a model have the given values."""
    mapping: list[tuple[keras.Variable, Tensor]] = []
    for name, values in (("trainable_variables", trainable), ("non_trainable_variables", non_trainable)):
        variables = getattr(model, name)
        if values is None:
            continue
        if len(values) != len(variables):
            raise ValueError(
                f"`{name}` must hold a value for each of the {len(variables)} variables in model.{name}, not "
                f"{len(values)}."
            )
        mapping.extend(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=mapping) if mapping else contextlib.nullcontext():
        yield


@dataclass(frozen=True)
class ELBOParts:
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


def elbo_parts(
    nll: Tensor,
    weights_kl: Tensor,
    num_examples: Tensor | int,
    temperature: Tensor | float = 1.0,
    local_kl: Tensor | None = None,
    sample_weight: Tensor | None = None,
    free_bits: float = 0.0,
    objective: str = "elbo",
) -> ELBOParts:
    """Puts the parts together; see the module's formula.

    Args:
        nll: Of each example, `(batch,)`, or of each draw of the network, `(draws, batch)`; in nats.
        weights_kl: Scalar, total, in nats.
        num_examples: Number of training examples.
        temperature: T.
        local_kl: Of each example and draw, the shape of `nll`, in nats.
        sample_weight: `(batch,)`, weights of examples: they scale an example's NLL and local KL, never the weights' KL.
        free_bits: Rate below which the loss does not reward a smaller mean local KL, in nats per example.
        objective: `"elbo"` or `"multi_sample"`. They differ in `loss`, and only for more than one draw.

    Example:
    >>> parts = elbo_parts(nll=np.array([1.0, 3.0], "float32"), weights_kl=50.0, num_examples=100, temperature=0.5)
    >>> float(parts.loss), float(parts.elbo)
    (2.25, -2.5)
    """
    nll = ops.convert_to_tensor(nll)
    mean_nll = batch_mean(nll, sample_weight)
    dtype = "float64" if keras.backend.standardize_dtype(nll.dtype) == "float64" else "float32"
    size = ops.cast(num_examples, dtype)
    kl_per_example = charged = weights_kl / size
    if local_kl is not None:
        local = mean_over_replicas(batch_mean(local_kl, sample_weight))
        # Not max(local, 0) without free bits: a divergence estimated from samples may be negative.
        charged = charged + (ops.maximum(local, free_bits) if free_bits else local)
        kl_per_example = kl_per_example + local
    temperature = ops.cast(temperature, dtype)
    loss = mean_nll + temperature * charged
    if objective == "multi_sample" and len(nll.shape) == 2:
        each = nll if local_kl is None else nll + temperature * ops.convert_to_tensor(local_kl)
        loss = batch_mean(mixture_nll(each), sample_weight) + temperature * weights_kl / size
    return ELBOParts(
        loss=loss,
        nll=mean_nll,
        kl=kl_per_example * size,
        elbo=-(mean_nll + kl_per_example),
        temperature=temperature,
    )


def batch_mean(values: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Mean of what examples cost, over draws too; of a replica its part, where the mean of the parts is the batch's.

    Args:
        values: `(batch,)` or `(draws, batch)`.
        sample_weight: `(batch,)`, or None. It multiplies the values, and the divisor stays the number of examples.

    Returns:
        Scalar.

    Example:
    >>> float(batch_mean(np.array([1.0, 3.0]), sample_weight=np.array([1.0, 0.0])))
    0.5
    """
    values = ops.convert_to_tensor(values)
    if sample_weight is not None:
        values = values * ops.cast(sample_weight, values.dtype)
    if num_replicas() == 1:
        return ops.mean(values)
    each = ops.mean(values, axis=0) if len(values.shape) == 2 else values
    return ops.sum(each) / ops.cast(rows_per_replica(ops.shape(each)[0]), values.dtype)


def share_of_loss(loss: Tensor) -> Tensor:
    """A replica's share of the loss of a batch, for Keras, which adds up gradients and logs means over replicas.

    All replicas give the same value: Keras weighs values by the replicas' rows, and the KL is no matter of rows.

    Args:
        loss: The replica's part; the loss of the batch is the mean of the parts.

    Returns:
        Scalar; the loss itself where there is one replica.
    """
    return mean_over_replicas(loss) / num_replicas()


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
        likelihood: `bdl.likelihoods.Likelihood` of the labels given the outputs; for several outputs, in a loop of your
            own, a dict or list as of `VariationalModel`. Under `compile` it may not have weights of its own (a learned
            scale), for the compiled model would not train them. Where the model holds them, the `penalty()` of their
            prior counts with the weights' KL.
        num_examples: Positive number of training examples, N. Without it the KL cannot be scaled, so it has no default.
        kl_weight: Temperature T: non-negative, 1 is Bayes. A schedule needs `VariationalModel`.
        model: The network whose weights' KL belongs in the loss, and which is compiled with it. A loop of your own
            takes `parts(...).loss`, and adds `sum(model.losses)` where layers have regularizers.
        free_bits: As of `VariationalModel`; above 0 the loss is not the ELBO any more, here `val_loss` neither.
        name: Name of the loss.

    Returns:
        Scalar, per example, in nats.

    Raises:
        ValueError: if `num_examples` is no positive integer, `kl_weight` or `free_bits` no such number, `model` is
            missing on a call, the likelihood's weights would go untrained, or `compile` would count the KL once for
            each of several outputs.

    Source: Graves 2011, "Practical variational inference for neural networks", eq. 3; N and minibatches as in
    Blundell et al. 2015, section 3.4.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> network.compile("adam", loss=ELBO(bdl.likelihoods.Categorical(), num_examples=100, model=network))
    >>> history = network.fit(np.ones((100, 4)), np.zeros(100, int), verbose=0)
    """

    counts_kl = True
    """Whether it counts the KL of the model's layers, for which a plain loss draws a warning."""

    def __init__(
        self,
        likelihood: Likelihoods,
        num_examples: int,
        kl_weight: float = 1.0,
        model: keras.Model | None = None,
        free_bits: float = 0.0,
        name: str = "elbo",
    ) -> None:
        super().__init__(name=name, reduction="none")
        self.likelihood = Heads(likelihood, model).likelihood
        self.num_examples = check_num_examples(num_examples)
        if isinstance(kl_weight, KLSchedule):
            raise ValueError(
                "`kl_weight` must be a number here: a schedule needs a step counter. Use VariationalModel."
            )
        self.kl_weight = check_kl_weight(kl_weight)
        self.free_bits = check_free_bits(free_bits)
        self.model = model
        if model is not None:
            note_objective(model)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of a batch; under a distribution strategy the replica's share of it."""
        self._check_counted_once(y_pred)
        return share_of_loss(self.parts(y_true, y_pred, sample_weight).loss)

    def parts(
        self,
        y: Tensor,
        outputs: Tensor,
        sample_weight: Tensor | None = None,
        trainable_variables: Sequence[Tensor] | None = None,
        non_trainable_variables: Sequence[Tensor] | None = None,
    ) -> ELBOParts:
        """All parts of the ELBO on a batch, for custom loops and logs.

        The local KL is that of the model's last evaluation in this thread, which it takes: evaluate the network, then
        call this once.

        Args:
            y: Labels, `(batch, ...)`; for several outputs a dict or list.
            outputs: Network outputs; a Keras mask on them is honoured.
            sample_weight: `(batch,)`; weights of events in the labels' shape; for several outputs a dict or list of
                such; or None.
            trainable_variables: Values of `model.trainable_variables`, in a loop that differentiates with respect to
                them (JAX, after `model.stateless_call`). None takes the variables' own (TensorFlow, Torch).
            non_trainable_variables: The same of `model.non_trainable_variables`.

        Raises:
            ValueError: as `kl_divergence` does, if the loss has no model, or the likelihood's weights would go
                untrained.
        """
        if self.model is None:
            raise ValueError("`model` is None, so the KL is unknown. Build the loss with ELBO(..., model=network).")
        heads = Heads(self.likelihood, self.model)
        trained = {id(weight) for weight in self.model.trainable_weights}
        for head in heads.each():
            if any(id(weight) not in trained for weight in head.trainable_weights):
                raise ValueError(
                    f"`likelihood` {type(head).__name__} learns a scale that `model` does not hold, so it would stay "
                    "untrained. Use VariationalModel, fix the scale, or let the network predict it."
                )
        values = (trainable_variables, non_trainable_variables)
        weights_kl = kl_divergence(self.model, *values)
        with _values_of(self.model, *values):
            weights = heads.weights(sample_weight, outputs)
            nll = heads.nll(y, outputs, weights)
            penalty = heads.penalty()
        return elbo_parts(
            nll,
            weights_kl + penalty,
            self.num_examples,
            self.kl_weight,
            take_local_kl(self.model),
            weights.of_examples,
            self.free_bits,
        )

    def evidence(self, y: Tensor, outputs: Tensor, sample_weight: Tensor | None = None) -> ELBOParts:
        """Deprecated name of `parts`."""
        _warn_of_old_name("ELBO.evidence", "ELBO.parts")
        return self.parts(y, outputs, sample_weight)

    def _check_counted_once(self, y_pred: Any) -> None:
        """Refuses to be called for one of several outputs, as Keras calls losses: each call counts the whole KL."""
        several = keras.tree.flatten(output_structure(self.model)) if self.model is not None else []
        is_part = len(several) > 1 and not isinstance(y_pred, (dict, list, tuple))
        given = keras.tree.flatten(getattr(self.model, "loss", None))
        is_only_one = len(given) > 1 and sum(isinstance(loss, ELBO) for loss in given) == 1
        if is_part and not is_only_one:
            raise ValueError(
                f"`loss` must not be ELBO for a model of {len(several)} outputs: Keras calls a loss for each of them, "
                "and each call would count the KL of all weights. Use VariationalModel(network, {'name': likelihood, "
                "...}), or in a loop of your own parts(y, outputs)."
            )

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


def __getattr__(name: str) -> Any:
    """Old names of `ELBOParts` and `elbo_parts`."""
    new = {"Evidence": "ELBOParts", "evidence": "elbo_parts"}.get(name)
    if new is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _warn_of_old_name(f"bdl.elbo.{name}", f"bdl.elbo.{new}")
    return globals()[new]


def _warn_of_old_name(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with the next version.", DeprecationWarning, stacklevel=3)
