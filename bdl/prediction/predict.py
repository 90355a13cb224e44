"""Monte Carlo prediction of any Keras model, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from bdl.likelihoods import Likelihood
from bdl.likelihoods.heads import Likelihoods
from bdl.prediction.distributions import ClassificationPrediction, Prediction, RegressionPrediction
from bdl.sampling import Sampler, draw, label_entropy


def predict_distribution(
    model: keras.Model | Sequence[keras.Model],
    x: Any,
    likelihood: Likelihoods,
    num_samples: int = 64,
    batch_size: int = 32,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
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

    Returns:
        `ClassificationPrediction` or `RegressionPrediction`; of several outputs a dict or list of them, as `likelihood`
        is, or as the outputs are where one likelihood serves all.

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
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    if not models:
        raise ValueError("`model` must be a Keras model or a list of at least one, not an empty list.")
    for member in models:
        if not callable(member):
            raise TypeError(
                f"`model` must be a Keras model or a list of them, not {type(member).__name__}. "
                "keras.saving.load_model(path) loads one from a file."
            )
    samplers = [_sampler(member, likelihood) for member in models]
    return predict_with(samplers, x, num_samples, batch_size, consistent, seed, keep_outputs)


def _sampler(model: keras.Model, likelihood: Likelihoods) -> Sampler:
    """The model's own sampler, whose compiled functions are kept as long as the model and as the likelihood fits."""
    kept = vars(model).get("_bdl_sampler")
    if kept is None or not kept.serves(likelihood):
        kept = Sampler(model, likelihood)
        object.__setattr__(model, "_bdl_sampler", kept)  # not through Keras, which would track and save it
    return kept


def mean_of_prediction(prediction: Any) -> Any:
    """The predictive mean: class probabilities or the mean of targets; of several outputs in their structure."""
    return keras.tree.map_structure(lambda part: None if part is None else part.mean, prediction)


def predict_with(
    samplers: Sequence[Sampler],
    x: Any,
    num_samples: int,
    batch_size: int | None,
    consistent: bool = False,
    seed: int | None = None,
    keep_outputs: bool = False,
    steps: int | None = None,
) -> Any:
    """`predict_distribution` with samplers that keep their compiled functions between calls.

    Args:
        samplers: Of the networks.
        x: As of `predict_distribution`, as are the others.
        num_samples: Of all networks together.
        batch_size: None for that of `steps`, or Keras' 32.
        consistent: Whether to draw whole functions.
        seed: Of the first network.
        keep_outputs: Whether to keep the raw outputs.
        steps: Number of batches of the data; None takes all.
    """
    arguments: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "steps": steps}
    for argument, value in arguments.items():
        is_left_out = value is None and argument != "num_samples"
        if not is_left_out and (not hasattr(value, "__index__") or isinstance(value, bool) or int(value) < 1):
            raise ValueError(f"`{argument}` must be an integer of at least 1, not {value!r}.")
    share = -(-int(num_samples) // len(samplers))
    draws = draw(samplers, x, share, batch_size, consistent, seed, keep_outputs, steps)
    heads = samplers[0].heads
    predictions = {
        name: _prediction(head, [draw[name] for draw in draws], share * len(samplers)) for name, head in heads.items()
    }
    return samplers[0].pack(predictions)


def _prediction(likelihood: Likelihood, draws: list[dict[str, np.ndarray]], num_samples: int) -> Prediction:
    """Joins the draws of the members of an ensemble."""
    outputs = np.concatenate([draw["outputs"] for draw in draws]) if "outputs" in draws[0] else None
    if likelihood.is_classifier:
        log_sums = [draw["p_scale"] + np.log(draw["p_sum"], dtype=np.float64) for draw in draws]
        with np.errstate(invalid="ignore"):  # of outputs that are NaN
            log_p = (np.logaddexp.reduce(log_sums) - np.log(num_samples)).astype(np.float32)
        p = np.exp(log_p if likelihood.has_class_axis else log_p[..., 1])
        total = entropy(likelihood, log_p)
        aleatoric = (np.sum([draw["entropy_sum"] for draw in draws], axis=0) / num_samples).reshape(total.shape)
        return ClassificationPrediction(likelihood, p, total, aleatoric, num_samples, outputs, log_p)
    names = [name for name in draws[0] if name != "outputs"]
    joined = {name: np.concatenate([draw[name] for draw in draws]) for name in names}
    is_single_target = all(value.ndim == 3 and value.shape[-1] == 1 for value in joined.values())
    parameters = {name: value[..., 0] if is_single_target else value for name, value in joined.items()}
    return RegressionPrediction(likelihood, parameters, outputs)


def entropy(likelihood: Likelihood, log_p: np.ndarray) -> np.ndarray:
    """Entropy of log probabilities over their last axis, in nats; a single label has no axis."""
    values = keras.ops.convert_to_numpy(label_entropy(log_p))
    is_single_label = not likelihood.has_class_axis and values.ndim == 2 and values.shape[-1] == 1
    return values[..., 0] if is_single_label else values
