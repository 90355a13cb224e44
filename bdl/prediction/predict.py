"""Monte Carlo prediction of any Keras model, or of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from bdl.arguments import check_count
from bdl.likelihoods.heads import Likelihoods
from bdl.prediction.requests import PART_SIZE, Request, num_inputs, parts_with, predict_with
from bdl.sampling import Sampler
from bdl.training.data import measure


def predict_distribution(
    model: keras.Model | Sequence[keras.Model],
    x: Any,
    likelihood: Likelihoods,
    num_samples: int = 64,
    batch_size: int = 32,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
    summary: bool | Sequence[float] = False,
    first_row: int = 0,
) -> Any:
    """Predicts with uncertainty from any Keras model: variational, MC dropout, or a list of models (an ensemble).

    Args:
        model: A built Keras model, or a list of them that share the samples equally (each gets at least one).
        x: Inputs, as `model.predict` takes them. Arrays: NumPy, tensors, pandas, scipy sparse matrices, plain lists of
            numbers, on TensorFlow text; in a list or dict for several inputs, None for an optional one that is left
            out. Or a data set, whose labels are ignored: `tf.data.Dataset`, `PyDataset`, Torch `DataLoader`, generator.
        likelihood: What the outputs mean. `Categorical()` follows a network that visibly ends in softmax;
            `Categorical(from_logits=False)` says that outputs are probabilities. For several outputs a dict by their
            names, or a list in their order; one alone serves them all.
        num_samples: Positive number of Monte Carlo samples.
        batch_size: Positive number of inputs evaluated at a time; a data set comes in batches of its own.
            Classification keeps running sums, so that memory does not grow with `num_samples`.
        consistent: True to draw whole functions: sample s uses the same weights for all inputs, so that samples may
            be compared across inputs (`keep_outputs`). False draws afresh for each batch.
        seed: Integer to make the prediction repeatable; None goes on with the layers' own seeds.
        keep_outputs: True to keep the raw network outputs as well, `(num_samples, n, ...)`.
        summary: True to keep of targets and counts the mean and both variances, and no samples, so that memory does
            not grow with `num_samples`. Levels such as (0.05, 0.95) keep these quantiles as well, which take longer
            than all else.
        first_row: Place of the first input in the data that `x` is a part of. With one `seed`, parts predicted apart
            are then those of a prediction for all the data.

    Returns:
        `ClassificationPrediction` or `RegressionPrediction`, with `summary` `RegressionSummary`; of several outputs a
        dict or list of them, as `likelihood` is, or as the outputs are where one likelihood serves all.

    Raises:
        ValueError: if an argument is out of range, an input is not finite, inputs differ in length, a data set never
            ends, or outputs and likelihood do not fit.
        TypeError: if `model` is no Keras model, such as a path.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> prediction = predict_distribution(network, np.ones((5, 4)), bdl.likelihoods.Categorical(), num_samples=8)
    >>> prediction.probabilities.shape, prediction.epistemic.shape
    ((5, 3), (5,))
    """
    request = Request(num_samples, batch_size, consistent, seed, keep_outputs, summary, first_row)
    return predict_with(_samplers(model, likelihood), x, request)


def predict_parts(
    model: keras.Model | Sequence[keras.Model],
    x: Any,
    likelihood: Likelihoods,
    num_samples: int = 64,
    batch_size: int = 32,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
    summary: bool | Sequence[float] = False,
    first_row: int = 0,
    part_size: int = PART_SIZE,
    verbose: bool = False,
) -> Iterator[Any]:
    """Predicts one part of the data after the other, so that memory does not grow with their number.

    The weights are read when the first part is asked for. Memory maps (`np.load(path, mmap_mode="r")`) and data sets
    stay where they are. `bdl.write_predictions` writes the parts to a file.

    Args:
        model: As of `bdl.predict_distribution`.
        x: As of `bdl.predict_distribution`.
        likelihood: As of `bdl.predict_distribution`.
        num_samples: As of `bdl.predict_distribution`.
        batch_size: As of `bdl.predict_distribution`.
        consistent: As of `bdl.predict_distribution`.
        seed: As of `bdl.predict_distribution`. With one, the parts together are its prediction.
        keep_outputs: As of `bdl.predict_distribution`.
        summary: As of `bdl.predict_distribution`.
        first_row: As of `bdl.predict_distribution`.
        part_size: Positive number of inputs of a part, rounded up to whole batches.
        verbose: Whether to show on standard output how far it is.

    Yields:
        The prediction for the next inputs, as `bdl.predict_distribution` returns it.

    Raises:
        ValueError: as `bdl.predict_distribution`.
        TypeError: if `model` is no Keras model.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(2)])
    >>> parts = predict_parts(network, np.ones((96, 4)), bdl.likelihoods.Normal(), summary=True, part_size=64)
    >>> [part.mean.shape for part in parts]
    [(64, 2), (32, 2)]
    """
    check_count("part_size", part_size)
    request = Request(num_samples, batch_size, consistent, seed, keep_outputs, summary, first_row)
    parts = parts_with(_samplers(model, likelihood), x, request, part_size)
    return shown(parts, x) if verbose else parts


def shown(parts: Iterator[Any], x: Any) -> Iterator[Any]:
    """Parts of a prediction, with a progress bar on standard output."""
    total = measure(x).num_examples
    bar = keras.utils.Progbar(total, unit_name="row")
    rows = 0
    for part in parts:
        rows += num_inputs(part)
        bar.update(rows, finalize=False)
        yield part
    bar.update(rows, finalize=True)


def _samplers(model: keras.Model | Sequence[keras.Model], likelihood: Likelihoods) -> list[Sampler]:
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    if not models:
        raise ValueError("`model` must be a Keras model or a list of at least one, not an empty list.")
    for member in models:
        if not callable(member):
            raise TypeError(
                f"`model` must be a Keras model or a list of them, not {type(member).__name__}. "
                "keras.saving.load_model(path) loads one from a file."
            )
    return [_sampler(member, likelihood) for member in models]


def _sampler(model: keras.Model, likelihood: Likelihoods) -> Sampler:
    """The model's own sampler, whose compiled functions are kept as long as the model and as the likelihood fits."""
    kept = vars(model).get("_bdl_sampler")
    if kept is None or not kept.serves(likelihood):
        kept = Sampler(model, likelihood)
        object.__setattr__(model, "_bdl_sampler", kept)  # not through Keras, which would track and save it
    return kept
