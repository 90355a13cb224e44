"""Which recipe for which network and data: rules with the measurements that they rest on. Nothing is trained or probed.

The figures are printed by research/, and those of estimators by benchmarks/sklearn_table.py. docs/explain/defaults.md
names the script of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from bdl import likelihoods
from bdl.arguments import check_num_examples
from bdl.keras_internals import input_structure, output_spec
from bdl.likelihoods import Likelihood
from bdl.training.data import DEFAULT_BATCH_SIZE, first_batch, measure

TASKS = ("classification", "regression", "counts")
FEW_TARGETS = 200
"""Examples of a regression below which fitted means overfit, and `fully_gaussian` was measured to be ahead."""
MANY_TARGETS = 8_000
"""Examples of a regression from which `regression` was measured, ahead of the defaults on three of four sets."""
LARGE = 10_000_000
"""Weights above which a second number for each weight is a cost to think of first."""
_STEPS = {"small_data": 1_000, "instead_of_ensemble": 500}
_FEW_EXAMPLES, _STEPS_OF_FEW = 1_000, 1_000  # below so many examples, at least so many steps were measured


@dataclass(frozen=True)
class Labels:
    """What labels were taken for.

    Args:
        task: One of `TASKS`; None for several outputs of different kinds.
        likelihood: Name and arguments of a likelihood that fits them, or None where each output needs its own.
        reading: A sentence on how they were read, and what to do if that is wrong.
    """

    task: str | None
    likelihood: tuple[str, dict[str, Any]] | None
    reading: str

    @property
    def has_scale(self) -> bool:
        """Whether the network has outputs for the likelihood's scale."""
        return self.likelihood is not None and self.likelihood[1].get("heteroscedastic", False)


@dataclass(frozen=True)
class Recommendation:
    """One recipe for a network and its data, with the reason; its text is the advice.

    Args:
        name: Name of the recipe in `bdl.recipes`.
        recipe: The recipe, to be called with network and likelihood: `recipe(network, likelihood)`.
        code: The same call in Python.
        likelihood: A likelihood that fits the labels, new for this record; None where each output needs its own.
        labels: How the labels were read.
        reason: Why this recipe, with what was measured.
        cost: What it costs in time, and how long it has to be trained.
        otherwise: When to choose another recipe.
    """

    name: str
    recipe: Callable[..., Any]
    code: str
    likelihood: Likelihood | None
    labels: str
    reason: str
    cost: str
    otherwise: str

    def __str__(self) -> str:
        """The advice in plain text."""
        return (
            f"{self.code}\n  Labels: {self.labels}\n  Why: {self.reason}\n  Cost: {self.cost}\n"
            f"  Otherwise: {self.otherwise}"
        )


def advise(
    recipes: Mapping[str, Callable[..., Any]],
    network: keras.Model,
    x: Any,
    y: Any = None,
    task: str | None = None,
    num_examples: int | None = None,
    is_trained: bool | None = None,
) -> Recommendation:
    """What `bdl.recipes.recommend` returns, from the recipes by their names."""
    if not isinstance(network, keras.Model):
        raise ValueError(f"`network` must be a keras.Model that ends in raw outputs, not {network!r}.")
    if task is not None and task not in TASKS:
        raise ValueError(f"`task` must be one of {TASKS}, or None to read it off the labels, not {task!r}.")
    size = _num_examples(x, y, num_examples)
    if y is None and (batch := first_batch(x)) is not None:
        y = batch[1]
    labels = _labels_of(network, y, task)
    is_large = bool(network.built) and network.count_params() > LARGE
    is_trained = _has_trained(network) if is_trained is None else is_trained
    arguments: dict[str, Any] = {}
    if is_trained:
        name, arguments = "fine_tuning", {"layers": "last"} if is_large and not _has_several(network) else {}
        words = _of_trained(is_large)
    elif is_large and not _has_several(network):
        name, words = "last_layer", _OF_LARGE
    else:
        name = by_size(labels.task, size, labels.has_scale)
        words = _BY_SIZE[labels.task or "counts", name]
    reason, cost, otherwise = words
    likelihood = labels.likelihood
    call = ", ".join(["network", _code(likelihood), *(f"{key}={value!r}" for key, value in arguments.items())])
    return Recommendation(
        name=name,
        recipe=partial(recipes[name], **arguments) if arguments else recipes[name],
        code=f"bdl.recipes.{name}({call})",
        likelihood=None if likelihood is None else getattr(likelihoods, likelihood[0])(**likelihood[1]),
        labels=labels.reading,
        reason=f"{size:,} training examples. {reason}",
        cost=f"{cost}{_epochs(name, size)}",
        otherwise=f"{otherwise} {_TWIN}",
    )


def by_likelihood(likelihood: Likelihood, size: int) -> str:
    """`by_size` for a likelihood that is already there."""
    is_count = isinstance(likelihood, (likelihoods.Poisson, likelihoods.NegativeBinomial))
    task = "classification" if likelihood.is_classifier else "counts" if is_count else "regression"
    return by_size(task, size, getattr(likelihood, "heteroscedastic", False))


def by_size(task: str | None, size: int, has_scale: bool = False) -> str:
    """Name of the recipe for a network that is neither trained nor very large.

    Args:
        task: One of `TASKS`, or None for outputs of different kinds.
        size: Number of training examples.
        has_scale: Whether the likelihood's scale is an output of the network.

    Example:
    >>> by_size("regression", 60), by_size("regression", 500), by_size("classification", 60)
    ('fully_gaussian', 'small_data', 'instead_of_ensemble')
    """
    if task == "classification":
        return "instead_of_ensemble"
    if task == "regression" and size < FEW_TARGETS:
        return "fully_gaussian"
    if task == "regression" and size >= MANY_TARGETS and not has_scale:
        return "regression"
    return "small_data"


def read_labels(y: Any, width: int | None) -> Labels:
    """What labels of one output are, as far as they show it.

    Text and booleans are classes, and so are one-hot rows. Numbers with a fraction are targets. Whole numbers are
    ambiguous, and the network decides: below its number of outputs they are classes; behind one output 0 and 1 are
    classes, other integers counts if none is negative, and whole numbers of a real type targets.

    Args:
        y: Labels.
        width: Length of the outputs' last axis, or None where it is not known.

    Raises:
        ValueError: if there are none, or they do not tell.

    Example:
    >>> read_labels(np.array([0, 2, 1]), width=3).task
    'classification'
    >>> read_labels(np.array([0, 2, 1]), width=1).task
    'counts'
    """
    y = _as_array(y)
    if not y.size:
        raise ValueError("`y` must hold labels, not none. Pass the training labels, or a data set that gives them.")
    if y.dtype.kind in "USb":
        kind = "booleans" if y.dtype.kind == "b" else "text"
        return _classes(width, f"{kind}, so classes; give `fit` their numbers, from 0 up.")
    if not np.issubdtype(y.dtype, np.number) or np.iscomplexobj(y):
        raise ValueError(f"`y` must hold numbers, booleans or text, not {y.dtype}. Or say task='classification'.")
    finite = y[np.isfinite(y)]
    if np.any(finite != np.round(finite)):
        return _targets(width, y, "real numbers, so targets of a regression; standardise them.")
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if width is None:
        raise ValueError(
            "`y` holds whole numbers, which may be classes, counts or targets, and the outputs of `network` are not "
            f"known. `task` must be one of {TASKS}, not None."
        )
    if width > 1 and y.ndim > 1 and y.shape[-1] == width and low >= 0 and np.all(y.sum(axis=-1) == 1):
        return _classes(width, "one-hot rows, so classes.")
    if low >= 0 and high < max(width, 2):
        rest = "If they are counts or measured, say task='counts' or 'regression'."
        return _classes(width, f"whole numbers from 0 to {high:g} behind {width} outputs, so class numbers. {rest}")
    if width == 1 and low >= 0 and y.dtype.kind in "iu":
        rest = "If they are measured in whole units, such as years, say task='regression'."
        return _counts(f"integers from {low:g} to {high:g} behind one output, so counts. {rest}")
    if width == 1 or width == 2 or (y.ndim > 1 and y.shape[-1] in (width, width // 2)):
        return _targets(
            width, y, "whole numbers that are no class numbers of this network, so targets; standardise them."
        )
    raise ValueError(
        f"`y` must hold class numbers from 0 to {width - 1} for the {width} outputs of `network`, not {low:g} to "
        f"{high:g}. Give the network as many outputs as classes, or say what the labels are by `task`."
    )


def _labels_of(network: keras.Model, y: Any, task: str | None) -> Labels:
    """Labels of every output together."""
    widths = _widths(network)
    if y is None:
        if task is None:
            raise ValueError(
                f"`y` must hold the labels, or `task` must be one of {TASKS}: `x` is read once, so that its labels "
                "cannot be looked at."
            )
        return _said(task, next(iter(widths.values())) if len(widths) == 1 else None, None)
    if len(widths) > 1:
        return _of_several(widths, y, task)
    width = next(iter(widths.values()))
    return read_labels(y, width) if task is None else _said(task, width, _as_array(y))


def _of_several(widths: dict[str, int | None], y: Any, task: str | None) -> Labels:
    parts = y if isinstance(y, Mapping) else dict(zip(widths, y, strict=False))
    found = {task} if task is not None else {read_labels(part, widths.get(name)).task for name, part in parts.items()}
    kind = found.pop() if len(found) == 1 else None
    return Labels(kind, None, f"of {len(widths)} outputs: give a dict with a likelihood for each by its name.")


def _said(task: str, width: int | None, y: np.ndarray | None) -> Labels:
    reading = f"task={task!r}, as you say."
    if task == "classification":
        return _classes(width, reading)
    return _counts(reading) if task == "counts" else _targets(width, y, reading)


def _classes(width: int | None, reading: str) -> Labels:
    return Labels("classification", ("Bernoulli" if width == 1 else "Categorical", {}), reading)


def _counts(reading: str) -> Labels:
    return Labels("counts", ("NegativeBinomial", {}), reading)


def _targets(width: int | None, y: np.ndarray | None, reading: str) -> Labels:
    """A Student t, of predicted scale where the network has two outputs for each target."""
    targets = 1 if y is None or y.ndim < 2 else y.shape[-1]
    is_predicted = width is not None and width == 2 * targets
    return Labels("regression", ("StudentT", {"heteroscedastic": True} if is_predicted else {}), reading)


def _as_array(y: Any) -> np.ndarray:
    array = keras.ops.convert_to_numpy(y) if keras.ops.is_tensor(y) else np.asarray(y)
    return np.array(array.tolist()) if array.dtype.kind == "O" else array  # of pandas, for one


def _num_examples(x: Any, y: Any, given: int | None) -> int:
    if given is not None:
        return check_num_examples(given)
    found = measure(x).num_examples
    if found is None and y is not None and not isinstance(y, Mapping):
        found = len(y)
    if found is None:
        raise ValueError(
            "`num_examples` must be the number of training examples, not None: `x` does not tell it before it is read."
        )
    return found


def _widths(network: keras.Model) -> dict[str, int | None]:
    """Length of the last axis of each output by its name; one output of unknown length where nothing is known."""
    entry = input_structure(network)
    if entry is None:
        return {"outputs": None}
    outputs = output_spec(network, entry)
    if isinstance(outputs, (list, tuple)):
        outputs = dict(zip(network.output_names, outputs, strict=True))
    if not isinstance(outputs, Mapping):
        outputs = {"outputs": outputs}
    return {name: output.shape[-1] if len(output.shape) > 1 else 1 for name, output in outputs.items()}


def _has_several(network: keras.Model) -> bool:
    return len(_widths(network)) > 1


def _has_trained(network: keras.Model) -> bool:
    """Whether the network's own optimizer has taken a step; weights that were loaded do not show."""
    optimizer = getattr(network, "optimizer", None)
    return optimizer is not None and int(keras.ops.convert_to_numpy(optimizer.iterations)) > 0


def _code(likelihood: tuple[str, dict[str, Any]] | None) -> str:
    if likelihood is None:
        return "likelihoods"
    arguments = ", ".join(f"{name}={value!r}" for name, value in likelihood[1].items())
    return f"bdl.likelihoods.{likelihood[0]}({arguments})"


def _epochs(name: str, size: int) -> str:
    """How long to train for the average at the end, in epochs of Keras' own batch size."""
    if name not in _STEPS:
        return ""
    steps = _STEPS_OF_FEW if size < _FEW_EXAMPLES else _STEPS[name]
    epochs = math.ceil(steps / math.ceil(size / DEFAULT_BATCH_SIZE))
    return f" Train for {steps:,} steps or more: {epochs} epochs in batches of {DEFAULT_BATCH_SIZE}."


_Words = tuple[str, str, str]
_TWIN = "Train the plain network beside it, and keep what validation data prefer."
_OF_CLASSES: _Words = (
    "For classification one network of this recipe is ahead of its deterministic twin in accuracy and NLL: digits "
    "(1,257 examples; .987 and .047 nats, twin .980 and .090), TREC (.907 and .25, .896 and .32), MNIST (.9921 and "
    ".0238, .9884 and .0387), Fashion-MNIST (.893 and .311, .876 and .365). On 60 to 200 examples (iris, wine, breast "
    "cancer, digits; 1,000 steps) it is ahead by .009 ± .003 nats and .5 ± .2 points of accuracy; single sets differ.",
    "A step takes 1.55 to 1.75 times the plain network's.",
    "`input_prior=None` where inputs may be noisy, blurred, pale or turned. "
    "An ensemble where .02 nats count (Fashion-MNIST). "
    "MC dropout (bdl.convert.to_mc_dropout) where images like MNIST's are expected to be blurred or pale.",
)
_OF_TARGETS: _Words = (
    "On six UCI regressions (300 to 9,600 rows) its test NLL is below that of five twins on five of them and below "
    "that of the MC-dropout grid search on five, with StudentT(heteroscedastic=True), for which the network needs two "
    "outputs for each target; with StudentT() its RMSE is not worse than the twin's.",
    "A step takes 1.5 to 2.5 times the plain network's.",
    "StudentT() where the mean's error counts, Normal() where the noise is known to be Gaussian. `fully_gaussian` for "
    "hundreds of noisy targets, which this recipe overfits (docs/explain/sklearn.md, diabetes). Five networks "
    "(bdl.predict_distribution of a list) have a lower RMSE on all six. Above 10,000 rows it was not measured.",
)
_OF_FEW_TARGETS: _Words = (
    "The fitted means of `small_data` overfit fewer than 200 targets: with 60 of diabetes and of friedman1 and 16 of "
    "linnerud this recipe's NLL is lower by .5 to 1.2 nats (docs/explain/sklearn.md, five seeds).",
    "A step takes 1.5 to 2.5 times the plain network's.",
    "A Gaussian process or a linear model (scikit-learn) is ahead of every network on some of these sets. "
    "`small_data` for smooth targets with little noise.",
)
_OF_MANY_TARGETS: _Words = (
    "With Normal() its NLL is below that of the layers' defaults on three of four large sets: 11,934 rows with hardly "
    "any noise (-.84), 8,192 smooth ones (-.04), 9,568 of a power plant (-.005); with much noise (45,730 rows) it is "
    ".019 behind. `small_data` is behind it on all four, by .93, .014, .006 and .020 (research/defaults.md).",
    "A step takes 1.5 to 2.5 times the plain network's.",
    "`compile('adam')` and the layers' defaults where the noise is as large as what there is to learn. `small_data` "
    "where the network predicts the scale as well, which this recipe overfits.",
)
_OF_COUNTS: _Words = (
    "No recipe was measured on counts or on outputs of different kinds; this one is the best on few or many real "
    "targets.",
    "A step takes 1.5 to 2.5 times the plain network's.",
    "Poisson() where counts are not overdispersed.",
)
_OF_LARGE: _Words = (
    "The network has more than ten million weights. A posterior for each would double the memory of weights and "
    "optimizer; that of the last layer costs next to nothing. On digits its accuracy is at or above the twin's and its "
    "NLL below it with relu networks of 128 units and more.",
    "Next to none beside the plain network's.",
    "It detects unseen inputs hardly better than the twin: `instead_of_ensemble` where that counts and memory allows, "
    "`fine_tuning` once the network is trained.",
)


_BY_SIZE = {
    ("classification", "instead_of_ensemble"): _OF_CLASSES,
    ("regression", "fully_gaussian"): _OF_FEW_TARGETS,
    ("regression", "small_data"): _OF_TARGETS,
    ("regression", "regression"): _OF_MANY_TARGETS,
    ("counts", "small_data"): _OF_COUNTS,
}


def _of_trained(is_large: bool) -> _Words:
    part = " Of a network with more than ten million weights the last layer alone gets a posterior." if is_large else ""
    return (
        "The network is trained. Two epochs took a convolutional network of digits from an accuracy of .9874 to .9893, "
        f"an NLL of .0488 to .0392 and an ECE of .0099 to .0072.{part}",
        "A few epochs at Adam's 1e-3, of about twice the plain network's time.",
        "The data are used twice, an empirical-Bayes method; train one of the other recipes anew where that matters. "
        "It does not tell noise from data better; `instead_of_ensemble` does. A network with dropout can be kept as it "
        "is (bdl.convert.to_mc_dropout).",
    )
