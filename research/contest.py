"""Classifiers under one budget: a deterministic twin, MC dropout, an ensemble of five twins, and recipes of bdl.

`mnist.py` makes its tables of it. Every contestant has the same plain Keras network (MC dropout with dropout in it) and
the same number of epochs and examples a batch. Adam is at 1e-3, but for recipes, which bring an optimizer, and for
`twin_averaged`, which has that of `instead_of_ensemble`. Predictions on all evaluation sets are kept in a folder, so
that an ensemble is made of twins that are there already. Validation data are a part of the training data; test data
serve the final figures only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import fashion_mnist, hold_out, mnist, trec
from benchmarks.runs import Row, key_of
from research import shifts
from research.networks import lenet5, mlp, text_cnn
from research.record import NO_DATA

NUM_SAMPLES = 64
NUM_SHIFT_SAMPLES = 16
NUM_SHIFTED = 1000
NUM_UNSEEN = 2000
ENSEMBLE_SIZE = 5
MEMBER_STEP = 1000
DROPOUT_RATE = 0.2
PLAIN = ("twin", "twin_averaged", "mc_dropout")
ENSEMBLES = {"twin": "ensemble", "twin_averaged": "ensemble_averaged"}

# Epochs, batch size.
BUDGETS = {"digits": (100, 64), "mnist": (10, 128), "fashion": (20, 128), "trec": (12, 50)}


@dataclass(frozen=True)
class Case:
    """One training.

    Args:
        data: `"digits"`, `"mnist"`, `"fashion"` or `"trec"`.
        network: `"lenet5"`, `"text_cnn"`, or `"mlp512"` for two hidden layers of 512 units.
        contestant: `"twin"`, `"twin_averaged"` (with the optimizer of `instead_of_ensemble`), `"mc_dropout"`,
            `"default"` (layers at their defaults, by local reparameterization) or the name of a recipe.
        seed: Of the weights. Digits are split by its last three digits: the members of an ensemble share a split.
        left_out: Class that the training does not see, whose test examples are to be detected; -1 for none.
        split: `"test"`, or `"validation"` for choices.
    """

    data: str
    network: str
    contestant: str
    seed: int
    left_out: int = -1
    split: str = "test"


@dataclass(frozen=True)
class Data:
    """Training and evaluation data, and further sets by name."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    unseen: dict[str, np.ndarray]
    num_classes: int


@dataclass(frozen=True)
class Prediction:
    """Class probabilities `(n, classes)` and the expected entropy of a sample's `(n,)`."""

    probabilities: np.ndarray
    aleatoric: np.ndarray


def run(case: Case, folder: Path | None, predictions: Path) -> Row:
    """Trains a case, keeps its predictions, and returns its figures."""
    import bdl

    data = load(case, folder)
    model, last = trained(case, data)
    if case.contestant == "mc_dropout":
        model = bdl.convert.to_mc_dropout(model, seed=case.seed)
    found = predict(model, bdl.likelihoods.Categorical(), case, data)
    save(predictions, case, found, data.y_test)
    parts = {f"training_{name}": last[name] for name in ("elbo", "kl", "temperature") if name in last}
    return {**figures(found, data.y_test), **parts, "seconds": last["seconds"]}


def trained(case: Case, data: Data, make: Callable[[Case, Data], Any] | None = None) -> tuple[Any, Row]:
    """The model of a case after its epochs, and the logs of the last one with the `seconds` that all took.

    Args:
        case: Gives budget and seed.
        data: What it is trained on.
        make: Builds the compiled model in place of `compiled`.
    """
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(case.seed)
    model = (make or compiled)(case, data)
    epochs, batch_size = BUDGETS[case.data]
    start = time.perf_counter()
    history = model.fit(as_input(data.x), data.y, batch_size=batch_size, epochs=epochs, verbose=0).history
    return model, {name: values[-1] for name, values in history.items()} | {"seconds": time.perf_counter() - start}


def compiled(case: Case, data: Data) -> Any:
    """The model of a case, ready to fit."""
    import keras

    import bdl

    network = build(case, data)
    jit = jit_of(case.network)
    if case.contestant in PLAIN:
        optimizer = averaging_adam() if case.contestant == "twin_averaged" else "adam"
        network.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit)
        return network
    likelihood = bdl.likelihoods.Categorical()
    if case.contestant == "default":
        model = bdl.VariationalModel(bdl.convert.to_variational(network, "all", "local_reparameterization"), likelihood)
        model.compile("adam", jit_compile=jit)
    else:
        model = getattr(bdl.recipes, case.contestant)(network, likelihood)
        model.compile(model.optimizer, jit_compile=jit)
    return model


def jit_of(network: str) -> Any:
    """Whether to compile with XLA: on CPU, its convolutions are half as fast as TensorFlow's own."""
    return "auto" if network.startswith("mlp") else False


def averaging_adam(learning_rate: float = 3e-3, momentum: float = 0.99) -> Any:
    """The optimizer of `bdl.recipes.instead_of_ensemble`; without an average for a momentum of 0."""
    import keras

    from bdl.training.averaging import AveragingAdam

    return AveragingAdam(learning_rate, ema_momentum=momentum) if momentum else keras.optimizers.Adam(learning_rate)


def evaluation_seed(case: Case) -> int:
    """Seed of noise in the evaluation data: the same for all contestants, and for all members of an ensemble."""
    return case.seed % MEMBER_STEP if case.data == "digits" else 0


def load(case: Case, folder: Path | None) -> Data:
    """The data of a case: its training part, its test part (or validation part), and what it has never seen."""
    if case.data == "digits":
        x, y, x_test, y_test = digits(case.seed % MEMBER_STEP)
    elif folder is None:
        raise SystemExit(NO_DATA.format(case.data))
    elif case.data == "trec":
        x, y, x_test, y_test = trec(folder)
    else:
        x, y, x_test, y_test = (mnist if case.data == "mnist" else fashion_mnist)(folder)
        x, x_test = (part.astype("float32") / 255.0 for part in (x, x_test))
    if case.split == "validation":
        x, y, x_test, y_test = hold_out(x, y, 10_007)
    unseen = (
        _unseen_words(x, x_test, evaluation_seed(case)) if case.data == "trec" else _unseen_images(case, x_test, folder)
    )
    num_classes = int(y.max()) + 1
    if case.left_out >= 0:
        unseen["left_out"] = x_test[y_test == case.left_out]
        (x, y), (x_test, y_test) = (
            (images[labels != case.left_out], labels[labels != case.left_out])
            for images, labels in ((x, y), (x_test, y_test))
        )
    return Data(x, y, x_test, y_test, unseen, num_classes)


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits `(n, 8, 8)` in [0, 1], a stratified 30 % for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32").reshape(-1, 8, 8)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.3, random_state=seed, stratify=labels)
    return x, y, x_test, y_test


def build(case: Case, data: Data) -> Any:
    """The plain network of a case."""
    rate = DROPOUT_RATE if case.contestant == "mc_dropout" else 0.0
    if case.network == "text_cnn":
        return text_cnn(int(data.x.max()) + 2, data.x.shape[1], data.num_classes, rate)
    shape = (*data.x.shape[1:], 1)
    if case.network == "lenet5":
        return lenet5(shape, data.num_classes, rate)
    return mlp(shape, int(case.network.removeprefix("mlp")), 2, data.num_classes, rate=rate)


def predict(model: Any, likelihood: Any, case: Case, data: Data) -> dict[str, Prediction]:
    """Predictions of the test data (`test`), the unseen sets, and shifted test images (`rotation_1`, ...)."""
    sets = {"test": data.x_test, **data.unseen}
    if case.data != "trec" and case.left_out < 0:
        for name, shift in shifts.SHIFTS.items():
            for severity in shifts.SEVERITIES:
                sets[f"{name}_{severity}"] = shift(data.x_test[:NUM_SHIFTED], severity, evaluation_seed(case))
    found = {}
    for name, x in sets.items():
        samples = NUM_SAMPLES if name in ("test", *data.unseen) else NUM_SHIFT_SAMPLES
        found[name] = predict_one(model, likelihood, x, 1 if case.contestant in ENSEMBLES else samples)
    return found


def predict_one(model: Any, likelihood: Any, x: np.ndarray, samples: int) -> Prediction:
    """Predictions of one set."""
    import bdl

    result = bdl.predict_distribution(model, as_input(x), likelihood, samples, batch_size=1000)
    return Prediction(result.probabilities.astype("float32"), result.aleatoric.astype("float32"))


def as_input(x: np.ndarray) -> np.ndarray:
    """Images with their channel; words as they are."""
    return x[..., None] if x.ndim == 3 else x


def ensemble(members: list[dict[str, Prediction]]) -> dict[str, Prediction]:
    """The predictions of an ensemble: the mean of its members', and the mean of their entropies."""
    return {
        name: Prediction(
            np.mean([member[name].probabilities for member in members], axis=0),
            np.mean([member[name].aleatoric for member in members], axis=0),
        )
        for name in members[0]
    }


def figures(found: Mapping[str, Prediction], y: np.ndarray) -> Row:
    """Accuracy, NLL (nats per example), Brier score and ECE (15 bins) of the test data and of each shift; AUROC of
    total and of epistemic uncertainty of the test data against each unseen set.
    """  # noqa: D205 - one sentence
    from bdl import calibration

    row: Row = {}
    for name, prediction in found.items():
        p = prediction.probabilities.astype("float64")
        is_shift = name.rpartition("_")[0] in shifts.SHIFTS
        if name == "test" or is_shift:
            labels, prefix = y[: len(p)], f"{name}/" if is_shift else ""
            row[f"{prefix}accuracy"] = float(calibration.accuracy(labels, p))
            row[f"{prefix}nll"] = float(calibration.negative_log_likelihood(labels, p))
            row[f"{prefix}brier"] = float(calibration.brier_score(labels, p))
            row[f"{prefix}ece"] = float(calibration.expected_calibration_error(labels, p))
        else:
            for kind in ("total", "epistemic"):
                seen, unseen = (uncertainty(each, kind) for each in (found["test"], prediction))
                row[f"auroc_{name}/{kind}"] = float(calibration.out_of_distribution_auroc(seen, unseen))
    return row


def uncertainty(prediction: Prediction, kind: str) -> np.ndarray:
    """Predictive entropy (`"total"`), or mutual information (`"epistemic"`), in nats."""
    p = prediction.probabilities.astype("float64")
    total = -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1)
    return total if kind == "total" else total - prediction.aleatoric


def save(place: Path, case: Case, found: Mapping[str, Prediction], y: np.ndarray) -> None:
    """Keeps predictions, so that ensembles can be made of them."""
    place.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}|{part}": value for name, each in found.items() for part, value in vars(each).items()}
    draft = _file_of(place, case).with_suffix(".tmp.npz")
    np.savez(draft, y=y, **arrays)
    draft.replace(_file_of(place, case))


def read_predictions(place: Path, case: Case) -> tuple[dict[str, Prediction], np.ndarray]:
    """What `save` kept, and the labels."""
    with np.load(_file_of(place, case)) as archive:
        names = {key.rpartition("|")[0] for key in archive.files if key != "y"}
        found = {name: Prediction(archive[f"{name}|probabilities"], archive[f"{name}|aleatoric"]) for name in names}
        return found, archive["y"]


def ensemble_number(data: str, seed: int) -> int:
    """Which ensemble a twin belongs to.

    Of digits, the twins of one split: seeds s, 1000 + s, ..., 4000 + s. Elsewhere seeds 0 to 4, 5 to 9, ...
    """
    return seed % MEMBER_STEP if data == "digits" else seed // ENSEMBLE_SIZE


def ensemble_rows(rows: list[Row], place: Path) -> list[Row]:
    """Rows of ensembles of five, made of the twins whose predictions are in `place`."""
    found = []
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for row in rows:
        if row["contestant"] in ENSEMBLES:
            case = Case(**{name: row[name] for name in Case.__dataclass_fields__})
            number = ensemble_number(case.data, case.seed)
            key = (ENSEMBLES[case.contestant], case.data, case.network, case.left_out, case.split, number)
            groups.setdefault(key, []).append(case)
    for (contestant, data, network, left_out, split, number), members in groups.items():
        if len(members) < ENSEMBLE_SIZE or not all(_file_of(place, case).is_file() for case in members):
            continue
        read = [read_predictions(place, case) for case in sorted(members, key=lambda case: case.seed)[:ENSEMBLE_SIZE]]
        case = Case(data, network, contestant, number, left_out, split)
        found.append({"key": key_of(case), **asdict(case), **figures(ensemble([each for each, _ in read]), read[0][1])})
    return found


def _unseen_images(case: Case, x_test: np.ndarray, folder: Path | None) -> dict[str, np.ndarray]:
    """Uniform noise, test images turned by 90 degrees, and for MNIST and Fashion-MNIST each other's."""
    some = x_test[:NUM_UNSEEN]
    unseen = {"noise": shifts.uniform_noise(some, evaluation_seed(case)), "rotated": shifts.quarter_turn(some)}
    if case.data in ("mnist", "fashion") and folder is not None:
        images = (fashion_mnist if case.data == "mnist" else mnist)(folder)[2]
        unseen["partner"] = images[:NUM_UNSEEN].astype("float32") / 255.0
    return unseen


def _unseen_words(x: np.ndarray, x_test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Random words of the vocabulary in the test questions' lengths, and test questions read backwards."""
    generator = np.random.default_rng(seed)
    words = generator.integers(2, x.max() + 1, x_test.shape)
    reversed_questions = np.zeros_like(x_test)
    for row, question in zip(reversed_questions, x_test, strict=True):
        length = np.count_nonzero(question)
        row[:length] = question[:length][::-1]
    return {"noise": np.where(x_test > 0, words, 0).astype("int32"), "rotated": reversed_questions}


def _file_of(place: Path, case: Case) -> Path:
    return place / f"{hashlib.sha256(key_of(case).encode()).hexdigest()[:16]}.npz"
