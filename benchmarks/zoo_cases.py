"""The patients of the labelled zoo: what is done to which network on which data, and which verdicts are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import data as real_data
import numpy as np
from zoo_layers import add_loss_layer, code_layer, foreign_layer

DATA_SETS = ("digits", "breast_cancer", "wine", "diabetes")
REAL_DATA_SETS = ("concrete", "energy", "fashion_mnist")
BATCH_SIZES = {"wine": 16}
BATCH_SIZE = 32
# Epochs so that every data set has some 1,000 to 2,000 steps.
EPOCHS = {"digits": 40, "breast_cancer": 100, "wine": 100, "diabetes": 100}
REAL_EPOCHS = 40
CLASSES = {"digits": 10, "breast_cancer": 2, "wine": 3, "fashion_mnist": 10}
NUM_FEATURES = 4096  # random features of a linear model that is far wider than its data
REAL_EXAMPLES = 1500

HEALTHY = ("healthy",)
# A wide network whose weights mostly match their prior is one or the other, and never collapsed.
WIDE = ("healthy", "variance_saturated")
# T by which each of the three layers weighs its own KL, as libraries without an ELBO leave it to the user.
ADD_LOSS = {
    "times_N": (1.0, 1.0, 1.0),
    "times_10": (10.0, 10.0, 10.0),
    "tenth": (0.1, 0.1, 0.1),
    "thousandth": (1e-3, 1e-3, 1e-3),
    "foreign_times_N": (1.0, 1.0, 1.0),
    "foreign_one": (1.0, 1.0, 1.0),
    "foreign_log_std_times_N": (1.0, 1.0, 1.0),
    "foreign_mixture": (1.0, 1.0, 1.0),
    "missing": (0.0, 0.0, 0.0),
    "doubled": (2.0, 2.0, 2.0),
    "one_missing": (1.0, 0.0, 1.0),
    "one_doubled": (1.0, 2.0, 1.0),
}
# Kinds whose data, and so whose twin, are their own.
OF_THEIR_DATA = ("rank1_tiny", "rank1_noisy", "overfit", "features", "saturated", "shuffled", "count", "student")
OF_THEIR_DATA += ("count_shuffled", "student_shuffled")
_ACCOUNTING = ("missing", "doubled", "one_missing", "one_doubled")


@dataclass(frozen=True)
class Case:
    """One run: what is done, to what, and which verdicts are right.

    Args:
        kind: What is done.
        right: Verdicts that are right.
        data: Data set.
        width: Of the hidden layers.
        activation: Of the hidden layers.
        seed: Of split, initial weights and noise.
    """

    kind: str
    right: tuple[str, ...]
    data: str
    width: int
    activation: str = "relu"
    seed: int = 0

    @property
    def key(self) -> str:
        """Its identity in the results."""
        return f"{self.kind}/{self.data}/{self.width}/{self.activation}/{self.seed}"

    @property
    def is_regression(self) -> bool:
        """Whether its labels are targets."""
        return self.data not in CLASSES

    @property
    def epochs(self) -> int:
        """Length of its training."""
        epochs = EPOCHS.get(self.data, REAL_EPOCHS)
        factor = {"overfit": 3.0, "rank1_tiny": 2.0, "declared_10": 0.5, "nan": 0.2}.get(self.kind, 1.0)
        if self.kind == "few_steps":
            return max(6, epochs // 12)
        is_called_early = self.kind in ADD_LOSS and "healthy" not in self.right
        return max(10, int(epochs * (0.5 if is_called_early else factor)))

    @property
    def batch_size(self) -> int:
        """Of its training."""
        return BATCH_SIZES.get(self.data, BATCH_SIZE)


def cases(seeds: Iterable[int], folder: Path | None = None) -> Iterator[Case]:
    """The whole zoo; with a folder of real data, those as well."""
    for seed in seeds:
        activation = "tanh" if seed % 3 == 2 else "relu"
        for data in DATA_SETS:
            yield from (replace(case, activation=activation) for case in _healthy(data, seed))
            yield from _faulty(data, seed)
        yield from _faulty_by_width(seed)
        yield from _by_likelihood(seed)
        for data in REAL_DATA_SETS if folder is not None else ():
            yield from _on_real_data(data, seed)


def _healthy(data: str, seed: int) -> Iterator[Case]:
    wide = "rank1" if data in ("wine", "diabetes") else "default"
    # On 309 patients and a noisy target a plain network with a little dropout may overfit or not.
    dropout = ("healthy", "overfitting") if data == "diabetes" else HEALTHY
    for kind, right, width in (
        ("rank1", HEALTHY, 32),
        ("rank1", HEALTHY, 256),
        ("default", WIDE, 32),
        ("default", WIDE, 128),
        ("tied", WIDE, 32),
        ("tied", WIDE, 256),
        (f"{wide}_wide", WIDE, 512),
        ("low_rank", WIDE, 32),
        ("dropout", dropout, 64),
        ("rank1_noisy", HEALTHY, 64),
        ("rank1_tiny", HEALTHY, 32),
    ):
        yield Case(kind, right, data, width, seed=seed)
    if data == "wine":
        yield Case("features", WIDE, data, NUM_FEATURES, seed=seed)
    if data == "digits":
        yield Case("code", HEALTHY, data, 64, seed=seed)


def _faulty(data: str, seed: int) -> Iterator[Case]:
    if data in ("breast_cancer", "diabetes"):
        for kind in ADD_LOSS:
            right = ("accounting_error",) if kind in _ACCOUNTING else ("mis_scaled_kl",)
            yield Case(kind, WIDE if kind in ("foreign_one", "foreign_mixture") else right, data, 32, seed=seed)
        yield Case("declared_10", ("mis_scaled_kl",), data, 32, seed=seed)
        yield Case("nan", ("diverged",), data, 32, seed=seed)
    # At a rate of 1e-5 the scales are where they were as well.
    yield Case("slow", ("still_training", "scales_not_learned"), data, 32, seed=seed)
    yield Case("few_steps", ("still_training",), data, 32, seed=seed)
    yield Case("stuck", ("scales_not_learned",), data, 32, seed=seed)
    yield Case("cold", ("near_deterministic",), data, 32, seed=seed)
    if data != "wine":
        yield Case("dead_dropout", ("near_deterministic",), data, 32, seed=seed)
    if data != "diabetes":
        # A hundred of 124 wines are hardly few: some of these networks do not overfit.
        right = ("overfitting", "healthy") if data == "wine" else ("overfitting",)
        yield Case("overfit", right, data, 256, seed=seed)


def _by_likelihood(seed: int) -> Iterator[Case]:
    """Counts and heavy tails, and labels that were dealt out anew: no network can learn anything from these."""
    for kind in ("count", "student"):
        yield Case(kind, WIDE, "diabetes", 64, seed=seed)
        yield Case(f"{kind}_shuffled", ("no_signal",), "diabetes", 64, seed=seed)
    for data in ("digits", "breast_cancer"):
        yield Case("shuffled", ("no_signal",), data, 64, seed=seed)


def _faulty_by_width(seed: int) -> Iterator[Case]:
    for width in (384, 512):
        yield Case("collapse", ("collapsed",), "digits", width, seed=seed)
    # So few examples do not pay for the weights of a wide network, warm-up and empirical Bayes or not.
    for data in ("wine", "diabetes"):
        yield Case("default_collapse", ("underfitting", "collapsed", "over_pruned"), data, 512, seed=seed)
    for width in (96, 128):
        yield Case("forget", ("underfitting", "over_pruned"), "digits", width, seed=seed)
    # One hidden layer and T = 1 throughout: units that the KL takes before the data reach them.
    for width in (192, 320):
        yield Case("pruned", ("over_pruned",), "digits", width, seed=seed)
    # A prior far broader than the data need, on a linear model far wider than its data.
    yield Case("saturated", ("variance_saturated",), "breast_cancer", NUM_FEATURES, seed=seed)
    # A code that the outputs can do without, since they see the inputs.
    for data in ("digits", "breast_cancer"):
        yield Case("code_collapse", ("collapsed",), data, 64, seed=seed)


def _on_real_data(data: str, seed: int) -> Iterator[Case]:
    for kind, right, width in (
        ("rank1", HEALTHY, 64),
        ("default", WIDE, 64),
        ("dropout", HEALTHY, 64),
        ("stuck", ("scales_not_learned",), 64),
        ("cold", ("near_deterministic",), 64),
        ("times_N", ("mis_scaled_kl",), 64),
        ("one_missing", ("accounting_error",), 64),
    ):
        yield Case(kind, right, data, width, seed=seed)


@lru_cache(maxsize=64)
def load(data: str, seed: int, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """Training and test data, standardised; targets of a regression to unit variance."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    if data == "fashion_mnist":
        assert folder is not None
        x, y, x_test, y_test = real_data.fashion_mnist(folder)
        rows = np.random.default_rng(seed).permutation(len(x))[: 2 * REAL_EXAMPLES]
        x, y = x[rows].reshape(len(rows), -1) / np.float32(255), y[rows].astype(int)
    elif data in real_data.UCI:
        assert folder is not None
        x, y = real_data.uci(folder, data)
    else:
        bunch = getattr(datasets, f"load_{data}")()
        x, y = bunch.data.astype("float32"), bunch.target
    is_regression = data not in CLASSES
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.3, random_state=seed, stratify=None if is_regression else y
    )
    scale: Any = 16.0 if data == "digits" else x.std(axis=0) + 1e-6
    centre, scale = (0.0, 16.0) if data == "digits" else (x.mean(axis=0), scale)
    if data == "fashion_mnist":
        centre, scale = 0.0, 1.0
    x, x_test = ((part - centre) / scale for part in (x, x_test))
    if is_regression:
        mean, deviation = y.mean(), y.std()
        y, y_test = (((part - mean) / deviation).astype("float32") for part in (y, y_test))
    return x.astype("float32"), y, x_test.astype("float32"), y_test


def data_of(case: Case, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """The case's data: with wrong labels, few examples, or random features where it says so."""
    x, y, x_test, y_test = load(case.data, case.seed, folder)
    random = np.random.default_rng(case.seed)
    if case.kind == "rank1_tiny":
        x, y = x[:120], y[:120]
    if case.kind == "overfit":
        x, y = x[:100], y[:100]
    if case.kind in ("rank1_noisy", "overfit"):
        wrong = random.random(len(y)) < 0.2
        y = np.where(wrong, random.permutation(y), y)
    if case.kind.startswith("count"):  # of a target of unit variance
        y, y_test = (np.round(np.exp(1.0 + 0.7 * part)).astype(int) for part in (y, y_test))
    if case.kind.endswith("shuffled"):
        y, y_test = random.permutation(y), random.permutation(y_test)
    if case.kind in ("features", "saturated"):
        weights = random.normal(size=(x.shape[1], case.width)) / np.sqrt(x.shape[1])
        phase = random.uniform(0.0, 2.0 * np.pi, case.width)
        x, x_test = (
            (np.sqrt(2.0 / case.width) * np.cos(part @ weights + phase)).astype("float32") for part in (x, x_test)
        )
    return x, y, x_test, y_test


def build(case: Case, num_inputs: int, num_examples: int) -> tuple[Any, Any]:
    """The compiled model of a case, and its likelihood."""
    import keras

    import bdl

    kind = case.kind
    likelihoods = bdl.likelihoods
    likelihood: Any = likelihoods.Normal() if case.is_regression else likelihoods.Categorical()
    if kind.startswith(("count", "student")):
        likelihood = likelihoods.NegativeBinomial() if kind.startswith("count") else likelihoods.StudentT()
    rate = {"slow": 1e-5, "overfit": 3e-3, "features": 1e-2, "saturated": 1e-2}.get(kind, 1e-3)
    optimizer = keras.optimizers.Adam(rate)
    if kind in ADD_LOSS:
        network = _add_loss_network(case, num_inputs, num_examples)
        if case.is_regression:
            network.compile(optimizer, loss="mse")
            return network, bdl.likelihoods.Normal(scale=0.5**0.5)
        network.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return network, likelihood
    kl_weight = {"cold": 1e-3, "declared_10": 10.0}.get(kind)
    if kind in ("collapse", "pruned", "features", "saturated"):
        kl_weight = 1.0
    model = bdl.VariationalModel(_network(case, num_inputs), likelihood, kl_weight=kl_weight)
    model.compile(optimizer, metrics=[] if case.is_regression else ["accuracy"])
    return model, likelihood


def _outputs(case: Case) -> int:
    return CLASSES.get(case.data, 1)


def _network(case: Case, num_inputs: int) -> Any:
    import keras

    import bdl

    layers, kind = bdl.layers, case.kind
    layer: Any = layers.DenseReparameterization
    # The default prior when the zoo was made; `tied` is today's.
    options: dict[str, Any] = {"kernel_prior": bdl.priors.EmpiricalBayes()}
    if kind.startswith("rank1"):
        layer, options = layers.DenseRank1, {}
    elif kind == "tied":
        options = {}
    elif kind in ("collapse", "forget", "pruned"):
        options = {"kernel_prior": "fan_in_normal"}
    elif kind == "stuck":
        options["kernel_posterior"] = bdl.posteriors.MeanFieldNormal(speed=0.02)
    elif kind == "low_rank":
        options["kernel_posterior"] = bdl.posteriors.LowRankNormal()
    elif kind in ("features", "saturated"):
        scale = 3.0 if kind == "features" else 10.0
        family = bdl.posteriors.MeanFieldNormal(initial_scale=0.5 * scale)
        options = {"kernel_prior": bdl.priors.Normal(0.0, scale), "kernel_posterior": family}
        return keras.Sequential([keras.Input((num_inputs,)), layer(_outputs(case), **options)])
    elif kind in ("code", "code_collapse"):
        return _code_network(case, num_inputs)
    elif kind in ("dropout", "dead_dropout", "overfit"):
        layer, options = keras.layers.Dense, {}
    stack: list[Any] = [keras.Input((num_inputs,))]
    for _ in range(1 if kind == "pruned" else 2):
        stack.append(layer(case.width, activation=case.activation, **options))
        if kind in ("dropout", "dead_dropout", "overfit"):
            stack.append(layers.MCDropout({"dropout": 0.2, "dead_dropout": 0.0, "overfit": 0.02}[kind]))
    return keras.Sequential([*stack, layer(_outputs(case), **options)])


def _add_loss_network(case: Case, num_inputs: int, num_examples: int) -> Any:
    import keras

    weights = ADD_LOSS[case.kind]
    factor = float(num_examples) if case.kind.endswith("times_N") else 1.0
    layer: Any = add_loss_layer()
    if case.kind.startswith("foreign"):
        kind = next((kind for kind in ("log_std", "mixture") if kind in case.kind), "rho")
        layer = partial(foreign_layer(), kind=kind)
    units = (case.width, case.width, _outputs(case))
    stack: list[Any] = [keras.Input((num_inputs,))]
    for number, (width, weight) in enumerate(zip(units, weights, strict=True)):
        stack.append(layer(width, kl_weight=factor * weight / num_examples))
        if number < 2:
            stack.append(keras.layers.Activation(case.activation))
    return keras.Sequential(stack)


def _code_network(case: Case, num_inputs: int) -> Any:
    """Inputs to a Gaussian code of eight units to outputs; these see the inputs as well in `code_collapse`."""
    import keras

    inputs = keras.Input((num_inputs,))
    hidden = keras.layers.Dense(case.width, case.activation)(inputs)
    code = code_layer()()(keras.layers.Dense(16)(hidden))
    seen = keras.layers.Concatenate()([inputs, code]) if case.kind == "code_collapse" else code
    outputs = keras.layers.Dense(_outputs(case))(keras.layers.Dense(case.width, case.activation)(seen))
    return keras.Model(inputs, outputs)
