"""Predictions with their uncertainty as a file that needs neither bdl nor Keras to run.

The exported function is the whole Monte Carlo prediction: it evaluates the network `num_samples` times in a loop and
returns means and uncertainties, so that whoever serves it makes one call. With a seed its numbers are those of
`predict_distribution` with that seed, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bdl import random
from bdl.arguments import check_num_samples
from bdl.keras_internals import current_value, input_signature_of
from bdl.likelihoods import Likelihood
from bdl.likelihoods.heads import Heads, Likelihoods
from bdl.random import Tensor, hashing
from bdl.report import exporting
from bdl.sampling import Sampler, label_entropy, with_sample

CLASSIFICATION_OUTPUTS = ("probabilities", "total_uncertainty", "aleatoric", "epistemic")
REGRESSION_OUTPUTS = ("mean", "variance", "aleatoric", "epistemic")

_FORMATS = {"tensorflow": ("tf_saved_model", "onnx", "litert"), "jax": ("tf_saved_model",)}
"""Formats that hold the noise, by backend; docs/guides/serving.md has the reasons."""
_ONNX_OPSET = 18
"""The first with operations on the bits of integers, of which the noise is made."""


def export_distribution(
    model: keras.Model | Sequence[keras.Model],
    likelihood: Likelihoods,
    filepath: Any,
    format: str = "tf_saved_model",
    num_samples: int = 64,
    seed: int | None = 0,
    consistent: bool = False,
    input_signature: Any = None,
    verbose: bool | None = None,
    **kwargs: Any,
) -> None:
    """Writes the predictive distribution of any Keras model as an artifact that needs no bdl to run.

    The artifact takes a batch of any size and returns a flat dict of float32 tensors, named as the attributes of
    `ClassificationPrediction` (`probabilities`, and in nats `total_uncertainty`, `aleatoric`, `epistemic`) or of
    `RegressionPrediction` (`mean`, `variance`, `aleatoric`, `epistemic`, the latter three in squared units of the
    target). For several outputs the name of the head comes first: `"<head>_probabilities"`.

    Args:
        model: A built Keras model (variational, MC dropout, any other), or a list of them that share the samples
            equally: an ensemble.
        likelihood: What the outputs mean, as of `predict_distribution`. A learned scale is exported.
        filepath: Where to write: a folder for a SavedModel, else a file (`.onnx`, `.tflite`).
        format: As of `keras.Model.export`: `"tf_saved_model"` on TensorFlow and JAX, `"onnx"` and `"litert"` on
            TensorFlow, none on Torch. A `.keras` file of any backend can be loaded and exported on TensorFlow.
        num_samples: Positive number of Monte Carlo samples in each call.
        seed: Integer: every call draws the same noise, and equals `predict_distribution(..., seed=seed)` on the same
            rows. None: every call draws fresh noise, which only a SavedModel can, as it needs a variable.
        consistent: True to let all rows share their noise (whole functions), so that the prediction for a row does
            not depend on its place in the batch.
        input_signature: As of `keras.Model.export`. None reads it off the model; of a subclassed model, which only
            knows the shapes that it was called with, it takes the inputs for floats.
        verbose: Whether Keras prints what it wrote; None leaves that to Keras, which does.
        **kwargs: Other arguments of `keras.Model.export`.

    Raises:
        ValueError: if an argument is out of range, the model is not built, its inputs are not known, or the format
            cannot hold a Bayesian prediction on this backend; the message says what to do.

    Example:
    >>> network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
    >>> likelihood = bdl.likelihoods.Categorical()
    >>> folder = getfixture("tmp_path") / "served"
    >>> export_distribution(network, likelihood, folder, num_samples=16, verbose=False)
    >>> import tensorflow as tf
    >>> artifact = tf.saved_model.load(folder)
    >>> sorted(artifact.serve(np.ones((5, 4), "float32")))
    ['aleatoric', 'epistemic', 'probabilities', 'total_uncertainty']
    """
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    _check_format(format, seed)
    _check_models(models)
    predictive = _Predictive(
        models, likelihood, check_num_samples(num_samples, "Monte Carlo samples of a call"), seed, consistent
    )
    signature = input_signature_of(models[0]) if input_signature is None else input_signature
    settings = {"format": format, "verbose": verbose, "input_signature": signature, **kwargs}
    with exporting(filepath) as draft:
        if format == "onnx":
            _export_onnx(predictive, draft, settings)
        else:
            predictive.export(draft, **settings)


class _Predictive(keras.Model):
    """A whole Monte Carlo prediction as one function of the inputs; arguments as `export_distribution`."""

    def __init__(
        self,
        models: list[keras.Model],
        likelihood: Likelihoods,
        num_samples: int,
        seed: int | None,
        consistent: bool,
    ) -> None:
        # Without autocast: the networks see their inputs as they come.
        super().__init__(name="predictive", dtype="float32", autocast=False)
        self.networks = models
        self.likelihoods = Heads(likelihood, models[0]).each()
        self._samplers = tuple(Sampler(model, likelihood) for model in models)
        self._share = -(-num_samples // len(models))
        self._seed = seed
        self._consistent = consistent
        if seed is None:
            self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    def call(self, inputs: Any) -> dict[str, Tensor]:
        """Means and uncertainties by name."""
        results: Any = None
        for number, sampler in enumerate(self._samplers):
            results = self._drawn(sampler, number, inputs, results)
        count = self._share * len(self._samplers)
        named = {}
        for head, likelihood in self._samplers[0].heads.items():
            prefix = "" if head is None else f"{head}_"
            found = _summary(likelihood, results[str(head)], count)
            named.update({f"{prefix}{name}": value for name, value in found.items()})
        return named

    def _drawn(self, sampler: Sampler, number: int, inputs: Any, results: Any) -> Any:
        """The results, None at first, with all samples of one network in them."""
        values = [current_value(variable) for variable in sampler.network.variables]
        seeds = self._seeds(sampler, number, values)
        before = number * self._share

        def draw(seeds: dict[str, Tensor], results: Any, number: Any) -> tuple[dict[str, Tensor], Any]:
            seeded = list(values)
            for place, seed in seeds.items():
                seeded[int(place)] = seed
            outputs, after = sampler.evaluate(seeded, inputs, 0, self._consistent)
            recorded = {
                str(head): with_sample(likelihood, results and results[str(head)], outputs[head], number)
                for head, likelihood in sampler.heads.items()
            }
            return {place: after[int(place)] for place in seeds}, recorded

        first = 0
        if results is None:  # the first sample is drawn before the loop, and tells it all shapes
            seeds, results = draw(seeds, None, 0.0)
            first = 1

        def step(index: Any, carry: Any) -> Any:
            seeds, results = carry
            return draw(seeds, results, ops.cast(before + index, "float32"))

        return ops.fori_loop(first, self._share, step, (seeds, results))[1]

    def _seeds(self, sampler: Sampler, number: int, values: list[Tensor]) -> dict[str, Tensor]:
        """What the samples of a network start from, by the place of the seed among its variables."""
        fixed = sampler.seeds(number + (self._seed or 0))
        places = [place for place, value in enumerate(fixed) if value is not None]
        if self._seed is not None:
            return {str(place): fixed[place] for place in places}
        key = random.fold_in(random.draw_key(self.seed_generator), number)
        return {str(place): ops.cast(random.fold_in(key, place), values[place].dtype) for place in places}


def _summary(likelihood: Likelihood, results: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """What the running results of one head say after so many samples."""
    if not likelihood.is_classifier:
        mean, aleatoric, epistemic = results["mean"], results["noise"] / count, results["deviation"] / count
        if len(mean.shape) == 2 and mean.shape[-1] == 1:  # a single target has no axis
            mean, aleatoric, epistemic = mean[..., 0], aleatoric[..., 0], epistemic[..., 0]
        return dict(zip(REGRESSION_OUTPUTS, (mean, aleatoric + epistemic, aleatoric, epistemic), strict=True))
    log_p = results["p_scale"] + ops.log(results["p_sum"] / count)
    p = ops.exp(log_p if likelihood.has_class_axis else log_p[..., 1])
    total, aleatoric = label_entropy(log_p), results["entropy_sum"] / count
    if not likelihood.has_class_axis and len(total.shape) == 2 and total.shape[-1] == 1:  # nor has a single label
        total, aleatoric = total[..., 0], aleatoric[..., 0]
    found = (p, total, aleatoric, ops.maximum(total - aleatoric, 0.0))
    return dict(zip(CLASSIFICATION_OUTPUTS, found, strict=True))


def _check_models(models: list[keras.Model]) -> None:
    if not models:
        raise ValueError("`model` must be a Keras model or a list of at least one, not an empty list.")
    for model in models:
        if not isinstance(model, keras.Model) or not model.built:
            raise ValueError(f"`model` must be a built keras.Model, not {model!r}. Call it once on an example.")


def _check_format(format: str, seed: int | None) -> None:
    backend = keras.backend.backend()
    known = _FORMATS.get(backend, ())
    if format not in known:
        here = f"on {backend} {' or '.join(map(repr, known)) or 'none: its random generator is part of no graph'}"
        raise ValueError(
            f"`format` must be one that holds the noise of a prediction, {here}, not {format!r}. Save the model as a "
            f".keras file, load it with KERAS_BACKEND=tensorflow and export it there in one of "
            f"{_FORMATS['tensorflow']}; or export the means alone, by bdl.convert.to_deterministic(model)."
        )
    is_integer = hasattr(seed, "__index__") and not isinstance(seed, bool)
    if seed is not None and not is_integer:
        raise ValueError(f"`seed` must be an integer (one noise for all calls) or None (fresh noise), not {seed!r}.")
    if seed is None and format != "tf_saved_model":
        raise ValueError(
            f"`seed` must be an integer, not None, with `format`={format!r}: fresh noise needs a variable that each "
            "call moves on, which only 'tf_saved_model' has."
        )


def _export_onnx(predictive: keras.Model, filepath: Any, settings: dict[str, Any]) -> None:
    """Writes the file and checks it, since the converter writes what it cannot translate as it stands.

    Raises:
        ValueError: if there was such an operation.
    """
    with hashing.plain_operations():
        predictive.export(filepath, **{"opset_version": _ONNX_OPSET, **settings})
    import onnx

    try:
        onnx.checker.check_model(str(filepath))
    except onnx.checker.ValidationError as error:
        raise ValueError(
            f"`format` must be another than 'onnx' for this network, which has an operation that ONNX lacks: {error} "
            "Use 'tf_saved_model'."
        ) from error
