"""The outputs of a network and the likelihood of each: what a model needs of one output, a dict or a list of them.

Likelihoods, labels, weights and predictions are all matched with outputs here, by the outputs' names. A single output
has the name None, outputs in a dict have its keys, those in a list the names of the layers that make them, as in Keras.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from bdl.keras_internals import keras_mask, with_mask
from bdl.likelihoods.base import Likelihood, align_weight
from bdl.likelihoods.endings import Ending, endings_of
from bdl.likelihoods.mixture import Mixture
from bdl.likelihoods.weights import Weights, as_array, weights_of
from bdl.random import Tensor

Likelihoods = Likelihood | Mapping[str, Likelihood | None] | Sequence[Likelihood | None]
"""One likelihood for every output, a dict of them by the outputs' names, or a list in the outputs' order."""

Name = str | None

MASKED_EXAMPLES = 1024
"""So many examples' masks are looked at before `fit`. Where another label is none, the loss becomes NaN."""


class Heads:
    """The likelihood of each output of a network.

    Args:
        likelihood: One for every output, a dict by the outputs' names, or a list in their order. An output without one,
            or with None, has no labels and no predictions.
        network: The network, from which names and last activations are read where they can be seen; or None.

    Attributes:
        likelihood: The same, each as it follows from what the network visibly ends in.

    Raises:
        ValueError: if likelihoods and outputs do not fit.

    Example:
    >>> inputs = keras.Input((4,))
    >>> outputs = {"kind": keras.layers.Dense(3, "softmax")(inputs), "size": keras.layers.Dense(1)(inputs)}
    >>> likelihood = {"kind": bdl.likelihoods.Categorical(), "size": bdl.likelihoods.Normal()}
    >>> Heads(likelihood, keras.Model(inputs, outputs)).likelihood["kind"].from_logits
    False
    """

    def __init__(self, likelihood: Likelihoods, network: Any = None) -> None:
        self.likelihood = _as_likelihoods(likelihood)
        self._endings = Ending() if network is None else endings_of(network)
        if isinstance(self._endings, (list, tuple)) and len(self._endings) == 1:
            (self._endings,) = self._endings  # Keras returns the entry of a list of one
        if isinstance(self._endings, Ending) and not self._endings.is_seen:
            # How many outputs there are is not known either.
            self.likelihood = _mapped(lambda head: _following(head, self._endings), self.likelihood)
            return
        endings, followed = self.flat(self._endings), {}
        for name, head in self.by_name(self._endings).items():
            with naming(name):
                followed[name] = _following(head, endings[name])
        if len({id(head) for head in followed.values()}) == 1 and isinstance(self.likelihood, Likelihood):
            self.likelihood = next(iter(followed.values()))
        else:
            self.likelihood = self.pack(followed, self._endings)

    def each(self) -> list[Likelihood]:
        """Each likelihood once, also one of several outputs."""
        return list({id(head): head for head in _values(self.likelihood) if head is not None}.values())

    def penalty(self) -> Tensor:
        """What scale priors charge, each once, as the weights of a shared layer; scalar, total, in nats."""
        return sum((head.penalty() for head in self.each()), ops.zeros((), dtype="float32"))

    def endings(self, outputs: Any) -> dict[Name, Ending]:
        """What can be seen of each output."""
        flat = self.flat(outputs)
        return dict.fromkeys(flat, self._endings) if isinstance(self._endings, Ending) else self.flat(self._endings)

    def flat(self, outputs: Any) -> dict[Name, Any]:
        """Outputs by name.

        Raises:
            ValueError: if they are nested more deeply than a dict or a list.
        """
        if isinstance(outputs, Mapping):
            flat: dict[Name, Any] = dict(outputs)
        elif isinstance(outputs, (list, tuple)):
            flat = dict(zip(self._names(len(outputs)), outputs, strict=True))
        else:
            return {None: outputs}
        for name, output in flat.items():
            if isinstance(output, (Mapping, list, tuple)):
                raise ValueError(
                    f"`network` must give a tensor, or a dict or list of tensors, not a {type(output).__name__} as its "
                    f"output {name!r}. Put all outputs into one dict."
                )
        return flat

    def by_name(self, outputs: Any) -> dict[Name, Likelihood]:
        """The likelihood of each output that has one.

        Raises:
            ValueError: if likelihoods and outputs do not fit.
        """
        if isinstance(self.likelihood, Likelihood):
            return dict.fromkeys(self.flat(outputs), self.likelihood)
        found = self.match(self.likelihood, outputs, "likelihood")
        return {name: head for name, head in found.items() if head is not None}

    def pack(self, values: Mapping[Name, Any], outputs: Any) -> Any:
        """Values by name in the structure of the likelihoods; for one that serves all outputs, in the outputs' own."""
        if None in values:
            return values[None]
        model = outputs if isinstance(self.likelihood, Likelihood) else self.likelihood
        return dict(values) if isinstance(model, Mapping) else [values.get(name) for name in self.flat(outputs)]

    def match(self, values: Any, outputs: Any, argument: str) -> dict[Name, Any]:
        """Values by the names of the outputs they belong to.

        Args:
            values: One for a single output; a dict by the outputs' names; a list for outputs in a list.
            outputs: The network's outputs, or anything in their structure.
            argument: Name of the argument, for the message.

        Raises:
            ValueError: if they name an output that there is not, or cannot be told apart.
        """
        names = list(self.flat(outputs))
        if names == [None]:
            return {None: _only(values, argument)}
        if isinstance(values, Mapping):
            unknown = [name for name in values if name not in names]
            if unknown:
                fix = "Use these names" if isinstance(outputs, Mapping) else "Use these names, or a list in this order"
                raise ValueError(
                    f"`{argument}` must be by the names of the network's outputs, {names}, not {unknown[0]!r}. {fix}."
                )
            return dict(values)
        if isinstance(values, (list, tuple)) and not isinstance(outputs, Mapping):
            if len(values) != len(names):
                raise ValueError(
                    f"`{argument}` must have an entry for each of the outputs {names}, not {len(values)} entries. "
                    f"Name those that are meant: {{{names[0]!r}: ...}}."
                )
            return dict(zip(names, values, strict=True))
        kind = "list, whose order says nothing" if isinstance(values, (list, tuple)) else f"{type(values).__name__}"
        example = ", ".join(f"{name!r}: ..." for name in names)
        raise ValueError(f"`{argument}` must be a dict by the network's outputs, {{{example}}}, not a {kind}.")

    def labels(self, y: Any, outputs: Any) -> dict[Name, Any]:
        """The labels of each output that has a likelihood.

        Raises:
            ValueError: if there are none for one of them, or some for an output that there is not.
        """
        wanted = self.by_name(outputs)
        if not isinstance(y, Mapping) and None not in wanted:
            values = list(y) if isinstance(y, (list, tuple)) else [y]
            if len(values) == len(wanted) and (len(wanted) == 1 or len(wanted) < len(self.flat(outputs))):
                y = dict(zip(wanted, values, strict=True))  # of those outputs that have labels, as Keras takes them
        return present(self.match(y, outputs, "y"), wanted, "y", "Add them, or give that output the likelihood None.")

    def weights(self, sample_weight: Any, outputs: Any, loss_weights: Any = None) -> Weights:
        """What `sample_weight` and `loss_weights` of Keras say; `weights_of` tells how.

        Raises:
            ValueError: if weights do not fit the outputs.
        """
        wanted = self.by_name(outputs)
        of_outputs = {}
        if loss_weights is not None:
            of_outputs = self.match(loss_weights, outputs, "loss_weights")
            of_outputs = present(of_outputs, wanted, "loss_weights", "Add it; 1.0 leaves the likelihood as it is.")
        if sample_weight is None or not isinstance(sample_weight, (Mapping, list, tuple)):
            return weights_of(sample_weight, list(wanted), of_outputs)
        given = self.match(sample_weight, outputs, "sample_weight")
        given = present(given, wanted, "sample_weight", "Add them; None stands for weights of 1.", none_is_value=True)
        return weights_of(given, list(wanted), of_outputs)

    def nll(self, y: Any, outputs: Any, weights: Weights | None = None) -> Tensor:
        """Returns the NLL of each example, summed over outputs: `(batch,)`, in nats.

        Weights of events and outputs are included. Weights of whole examples are left to the mean over the batch, but
        labels of examples with weight 0 are not read.
        """
        weights = weights or Weights()
        flat, labels = self.flat(outputs), self.labels(y, outputs)
        total: Any = 0.0
        for name, head in self.by_name(outputs).items():
            given = {"event_weight": weights.within[name]} if name in weights.within else {}
            with naming(name):
                total = total + head.nll(labels[name], flat[name], weights.masking(keras_mask(flat[name])), **given)
        return total

    def means(self, y: Any, draws: Sequence[Any], sample_weight: Any = None) -> tuple[Any, Any, Any]:
        """Labels, the likelihoods' means and weights for the metrics of `compile`; means are averages over the draws.

        Events that do not count are masked, which metrics of Keras and of bdl heed. Several outputs are dicts by their
        names; those of outputs in a list keep the outputs' order.
        """
        outputs = draws[0]
        heads, labels = self.by_name(outputs), self.labels(y, outputs)
        means = OrderedDict()
        for name, head in heads.items():
            each = [head.mean(self.flat(draw)[name]) for draw in draws]
            mean = each[0] if len(each) == 1 else ops.mean(ops.stack(each), axis=0)
            output = self.flat(outputs)[name]
            mask = head.counted(ops.convert_to_tensor(labels[name]), output, keras_mask(output))
            # A copy, for a mean may be the outputs themselves.
            means[name] = mean if mask is None else with_mask(ops.copy(mean), mask)
        if sample_weight is not None:
            is_for_all = not isinstance(sample_weight, (Mapping, list, tuple))
            given = {} if is_for_all else self.match(sample_weight, outputs, "sample_weight")
            sample_weight = {name: sample_weight if is_for_all else given.get(name) for name in heads}
        if None in means:
            return labels[None], means[None], sample_weight and sample_weight[None]
        # Of a dict in order Keras takes the order, of another one the sorted names.
        kind = dict if isinstance(outputs, Mapping) else OrderedDict
        return kind((name, labels[name]) for name in heads), kind(means), sample_weight

    def check_labels(
        self, y: Any, outputs: Any, sample_weight: Any = None, masked_outputs: Callable[[int], Any] | None = None
    ) -> None:
        """Refuses labels that do not fit, but for those of events that do not count.

        Args:
            y: Labels, as `fit` takes them.
            outputs: Specification of the network's outputs.
            sample_weight: As `fit` takes it.
            masked_outputs: Gives the outputs of that many first examples, with Keras' masks on them. It is asked only
                where labels do not fit without a mask.

        Raises:
            ValueError: if they do not.
        """
        labels, specs = self.labels(y, outputs), self.flat(outputs)
        weights = self.weights(sample_weight, outputs)
        for name, head in self.by_name(outputs).items():
            with naming(name):
                array, shape = as_array(labels[name]), tuple(specs[name].shape)
                weight = weights.within.get(name)
                is_weighted = None if weight is None else align_weight(weight, head.event_shape(shape)) != 0
                counted = weights.masking(is_weighted)
                try:
                    head.check_labels(_hidden(array, counted, head, shape), shape)
                except ValueError:
                    mask = masked_outputs and keras_mask(self.flat(masked_outputs(MASKED_EXAMPLES))[name])
                    if mask is None:
                        raise
                    array = _hidden(array[: len(mask)], mask, head, shape)
                    counted = None if counted is None else counted[: len(mask)]
                    head.check_labels(_hidden(array, counted, head, shape), shape)

    def _names(self, count: int) -> list[str]:
        """Names of outputs in a list: those of the layers that make them, if these tell them apart."""
        endings = self._endings if isinstance(self._endings, (list, tuple)) else []
        names = [ending.name for ending in endings if ending.name is not None]
        return names if len(set(names)) == count else [f"output_{number}" for number in range(count)]


@contextlib.contextmanager
def naming(name: Name, kind: str = "Output") -> Iterator[None]:
    """Errors within this context say which of several outputs, or things of another kind, they are about."""
    try:
        yield
    except ValueError as error:
        if name is None:
            raise
        raise ValueError(f"{kind} {name!r}: {error}") from error


def present(
    values: Mapping[Name, Any], wanted: Mapping[Name, Any], argument: str, fix: str, none_is_value: bool = False
) -> dict[Name, Any]:
    """The values of these outputs.

    Raises:
        ValueError: naming the first that is missing.
    """
    for name in wanted:
        if name not in values or (values[name] is None and not none_is_value):
            given = [each for each, value in values.items() if value is not None]
            which = "" if name is None else f" for output {name!r}"
            raise ValueError(f"`{argument}` must have an entry{which}, not only {given}. {fix}")
    return {name: values[name] for name in wanted}


def _as_likelihoods(likelihood: Any) -> Likelihoods:
    """The argument with containers of its own, if it is one of the three kinds."""
    several = _values(likelihood)
    is_sound = all(isinstance(head, Likelihood) or head is None for head in several) and any(several)
    if not is_sound:
        raise ValueError(
            "`likelihood` must be a bdl.likelihoods.Likelihood instance, such as Categorical() or Normal(), or for "
            f"several outputs a dict or list of such, not {likelihood!r}."
        )
    if isinstance(likelihood, Likelihood):
        return likelihood
    return dict(likelihood) if isinstance(likelihood, Mapping) else list(likelihood)


def _values(likelihood: Any) -> list[Any]:
    if isinstance(likelihood, Mapping):
        return list(likelihood.values())
    return list(likelihood) if isinstance(likelihood, (list, tuple)) else [likelihood]


def _mapped(function: Callable[[Likelihood], Likelihood], likelihood: Any) -> Any:
    """The same structure of what a function makes of each likelihood."""
    if isinstance(likelihood, Mapping):
        return {name: _mapped(function, head) for name, head in likelihood.items()}
    if isinstance(likelihood, list):
        return [_mapped(function, head) for head in likelihood]
    return None if likelihood is None else function(likelihood)


def _following(head: Likelihood, ending: Ending) -> Likelihood:
    """A likelihood as it follows from how its output ends."""
    name = type(head).__name__
    if ending.alignments is not None and not isinstance(head, Mixture):
        raise ValueError(
            f"`likelihood` must be a Mixture for a network that ends in {ending.alignments!r}, whose decoder gives one "
            f"output for each alignment, not {name}. Use bdl.likelihoods.Mixture({name}(...))."
        )
    return head.following(ending)


def _only(values: Any, argument: str) -> Any:
    """The value of a single output, which Keras takes in a list of one as well."""
    if isinstance(values, (list, tuple)) and len(values) == 1:
        return values[0]
    if isinstance(values, Mapping) or (isinstance(values, (list, tuple)) and not np.isscalar(next(iter(values), 0))):
        kind = f"dict of {list(values)}" if isinstance(values, Mapping) else f"list of {len(values)}"
        raise ValueError(f"`{argument}` must be one, as the network has one output, not a {kind}.")
    return values


def _hidden(y: np.ndarray, counted: Any, head: Likelihood, output_shape: tuple[int | None, ...]) -> np.ndarray:
    """Labels of which those that do not count are replaced by one that any check accepts."""
    if counted is None:
        return y
    kept = as_array(counted)
    kept = kept.reshape(kept.shape + (1,) * (y.ndim - kept.ndim))
    return np.where(kept, y, head.some_label(y.shape, output_shape))
