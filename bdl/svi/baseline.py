"""A learned baseline: what a row is expected to cost, by which the score function's draws are measured.

The baseline b(x) of `bdl.svi.score` reads the row's data and the global draws that the row's guide reads, and not the
draws of the row itself: whatever it says, the gradient has no bias. One draw a step can do with it, which leaving one
out of the draws cannot. With S draws leaving one out has at best S / (S - 1) times the variance of a perfect baseline.

It is a linear function of features of the row, which are those of the recognition network, as constants, or those of a
network of its own. Its weights go down half the squared error in standard deviations of the costs, by the optimizer
of the model, since a rate of its own would be one more number to choose; mean and standard deviation of the costs are
running ones over about `MEMORY` steps. So the scale of the costs does not matter to the rate. What all rows of a batch
cost more or less than expected, while the fit moves, is taken off by the mean over the other rows, which depends on
none of the row's draws.

The errors are terms of the objective that are zero and have a gradient in the baseline's weights alone: they are in no
ELBO and no log. The weights are saved with the model, and are no part of its average.

Source: Mnih and Gregor 2014, "Neural variational inference and learning in belief networks", arXiv 1402.0030, section
2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras import ops

from bdl.keras_internals import current_value, flatten_layers
from bdl.protocols import HasKL, HasLocalLatents
from bdl.random import Tensor
from bdl.svi.draws import Draws
from bdl.svi.guides import Guide

BASELINES = ("leave_one_out", "learned")
"""Baselines that can be named by a string."""

MEMORY = 100
"""Steps over which mean and standard deviation of the costs run, about."""

_NUM_PARTS = 2  # of the cost: from a guide's first site on, and before it


class LearnedBaseline(keras.Layer):
    """Expects a row's cost of its data; of the guide of a discrete local site.

    Args:
        network: Makes features of what the guide's network reads; None takes the features of that.
        **kwargs: Of `keras.Layer`.

    Example:
    >>> baseline = LearnedBaseline()
    >>> baseline.build(3)
    >>> cost, features = np.array([[4.0, 6.0, 8.0]], "float32"), np.ones((1, 3, 3), "float32")
    >>> np.asarray(baseline.advantages(cost, None, features)[0])  # against the mean of the other rows
    array([[-3.,  0.,  3.]], dtype=float32)
    """

    is_control_variate = True

    def __init__(self, network: keras.Layer | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.num_features = 0

    def build(self, features: int) -> None:
        """Makes the variables, for that many features; a network is built by whoever made these."""
        self.num_features = int(features)
        self.head = keras.layers.Dense(
            _NUM_PARTS, kernel_initializer="zeros", dtype=self.dtype_policy, name=f"{self.name}_head"
        )
        self.head.build((None, None, self.num_features))
        self._mean = self._state("mean", (_NUM_PARTS,), None, "mean")
        self._variance = self._state("variance", (_NUM_PARTS,), None, "mean")
        self._seen = self._state("steps", (), "int32", "only_first_replica")
        self.built = True

    def advantages(
        self, after: Tensor, before: Tensor | None, features: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What draws cost beyond what is expected; learns from it.

        Args:
            after: Cost of each draw and row from the guide's first site on, `(draws, rows)`, in nats, as constants.
            before: Of what comes before it; None where that is nothing.
            features: Of each row, `(draws, rows, features)`, or of all draws `(1, rows, features)`, as constants.

        Returns:
            Both parts less what is expected of them, and zeros with the gradient of the baseline, `(rows,)`.
        """
        costs = ops.stack([after, ops.zeros_like(after) if before is None else before], axis=-1)
        guess = self.head(features)
        mean, scale = self._moments()
        beyond = costs - mean - scale * ops.stop_gradient(guess)
        beyond = beyond - _mean_of_others(beyond)
        mean, scale = self._moments_with(costs)
        error = 0.5 * ops.sum(ops.mean((guess - (costs - mean) / scale) ** 2, axis=0), axis=-1)
        own, others = (None if each is None else beyond[..., place] for place, each in enumerate((after, before)))
        return own, others, error - ops.stop_gradient(error)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the costs of earlier steps."""
        return current_value(self._mean), _scale(current_value(self._variance))

    def _moments_with(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Those with the costs of this step, which they know from now on."""
        steps = ops.convert_to_tensor(self._seen) + 1
        share = ops.cast(1.0 / ops.minimum(ops.cast(steps, "float32"), float(MEMORY)), costs.dtype)
        change = ops.mean(costs, axis=(0, 1)) - current_value(self._mean)
        mean = current_value(self._mean) + share * change
        variance = (1.0 - share) * (current_value(self._variance) + share * change**2)
        variance = variance + share * ops.var(costs, axis=(0, 1))
        self._mean.assign(mean)
        self._variance.assign(variance)
        self._seen.assign(steps)
        return mean, _scale(variance)

    def _state(self, name: str, shape: tuple[int, ...], dtype: str | None, aggregation: str) -> keras.Variable:
        return self.add_weight(
            name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, aggregation=aggregation
        )


def _scale(variance: Tensor) -> Tensor:
    """Standard deviation, positive where there is none."""
    return ops.sqrt(variance) + keras.config.epsilon()


def _mean_of_others(values: Tensor) -> Tensor:
    """Mean over all draws of the other rows: of `(draws, rows, parts)` `(rows, parts)`; zero of a single row."""
    of_rows = ops.mean(values, axis=0)
    others = ops.cast(ops.maximum(ops.shape(of_rows)[0] - 1, 1), values.dtype)
    return (ops.sum(of_rows, axis=0) - of_rows) / others


def features_of(guide: Any, data: Any, draws: Draws, network: keras.Layer | None) -> Tensor:
    """What a baseline reads of each row, as constants but for the weights of its own network.

    Args:
        guide: Of a discrete local site, `bdl.svi.Amortized`.
        data: The batch.
        draws: Of the global sites that the guide reads.
        network: Of the baseline; None takes the guide's own.

    Returns:
        `(draws, rows, features)`, or `(1, rows, features)` where all draws have the same.
    """
    every: list[Any] = [None]
    if guide.given:
        given = ops.stop_gradient(ops.concatenate([draws.real[name] for name in guide.given], axis=-1))
        every = [given[number] for number in range(given.shape[0])]
    found = ops.stack([guide.features(data, each, network) for each in every])
    return ops.stop_gradient(found) if network is None else found


def check_baseline(baseline: Any, guides: Sequence[Guide], layers: Sequence[keras.Layer], objective: str) -> Any:
    """Checks the argument `baseline` of a model.

    Args:
        baseline: One of the names, or a Keras layer.
        guides: That were asked for.
        layers: Networks of the story.
        objective: Of the model.

    Raises:
        ValueError: if it is neither, or is learned without guides of discrete sites or beside the weighted bound, which
            has a baseline of its own, or its layers have a divergence or are the guides' or the story's.
    """
    if isinstance(baseline, str) and baseline == "leave_one_out":
        return baseline
    if not isinstance(baseline, keras.Layer) and baseline not in BASELINES:
        raise ValueError(f"`baseline` must be one of {BASELINES}, or a Keras layer, not {baseline!r}.")
    fix = 'Leave it at "leave_one_out".'
    if not any(guide.is_discrete for guide in guides):
        raise ValueError(f"`baseline` is for guides of discrete local sites, of which there are none here. {fix}")
    if objective != "elbo":
        raise ValueError(f"`baseline` must be 'leave_one_out' with objective={objective!r}, not {baseline!r}. {fix}")
    if isinstance(baseline, keras.Layer):
        own = flatten_layers(baseline)
        taken = [layer for each in [*guides, *layers] for layer in flatten_layers(each)]
        wrong = [
            layer.name
            for layer in own
            if isinstance(layer, HasKL | HasLocalLatents) or any(layer is other for other in taken)
        ]
        if wrong:
            raise ValueError(
                f"`baseline` must have layers of its own, without posteriors and latent variables, which {wrong} are "
                "not: it is no part of the model. Give it plain layers that nothing else has."
            )
    return baseline


def baselines_for(baseline: Any, guides: Sequence[Any], data: Any, given_sizes: Sequence[int]) -> list[LearnedBaseline]:
    """A learned baseline for each guide of a discrete site.

    Args:
        baseline: `"learned"`, or a network: the first guide's baseline has it, those of others have copies.
        guides: Of discrete sites, bound.
        data: A batch.
        given_sizes: Of each guide, numbers on the real line of the global sites that it reads.
    """
    made = []
    networks = [_network(baseline, number) for number in range(len(guides))]  # before the first knows its input
    for number, (guide, size, network) in enumerate(zip(guides, given_sizes, networks, strict=True)):
        with _apart(number):
            given = ops.zeros((size,), dtype=guide.variable_dtype) if guide.given else None
            features = int(guide.features(data, given, network).shape[-1])
            made.append(_built(network, number, features, guide.dtype_policy))
    return made


def configs_of(baselines: Sequence[LearnedBaseline]) -> list[dict[str, Any]]:
    """What a file needs of the baselines of a model to make them again: the network of the first is the model's."""
    return [
        {
            "features": each.num_features,
            "network": None
            if each.network is None or not number
            else keras.saving.serialize_keras_object(each.network),
        }
        for number, each in enumerate(baselines)
    ]


def baselines_of_file(baseline: Any, configs: Sequence[dict[str, Any]], policy: Any) -> list[LearnedBaseline]:
    """The baselines that `configs_of` told of.

    Args:
        baseline: Of the model.
        configs: Of the file.
        policy: Of the model's dtype.
    """
    made = []
    for number, config in enumerate(configs):
        with _apart(number):
            own = config["network"]
            network = _network(baseline, 0) if own is None else keras.saving.deserialize_keras_object(own)
            made.append(_built(network, number, config["features"], policy))
    return made


def _network(baseline: Any, number: int) -> keras.Layer | None:
    """The network of one of the baselines, before it has weights; of the first the one that was given."""
    if isinstance(baseline, str):
        return None
    return type(baseline).from_config(baseline.get_config()) if number else baseline


def _built(network: keras.Layer | None, number: int, features: int, policy: Any) -> LearnedBaseline:
    made = LearnedBaseline(network, dtype=policy, name=f"baseline_{number}")
    made.build(features)
    return made


def _apart(number: int) -> AbstractContextManager[Any]:
    """Within this context variables have the number of a baseline in their paths, by which Torch tells them apart."""
    return keras.name_scope(f"baseline_{number}")
