"""What both estimators share: checks of the inputs, training by a recipe, and sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bdl import recipes
from bdl.arguments import check_count
from bdl.keras_internals import flatten_layers, output_spec
from bdl.likelihoods import Likelihood
from bdl.model import VariationalModel
from bdl.prediction import RegressionPrediction
from bdl.prediction.requests import Prediction
from bdl.protocols import HasKL
from bdl.recommendation import by_likelihood
from bdl.sklearn.networks import build_network, default_network, own_torch_generator, seeded, with_seed
from bdl.sklearn.passes import Passes

MIN_STEPS = 2_000
"""Training steps by default: recipes that end with an average over the last iterates need a thousand or more."""
MIN_EPOCHS = 40
"""Passes over the data by default."""
STEPS_PER_LOG = 100
"""Steps between two entries of `history_`, or a pass where that is longer: Keras takes tens of steps' time for one."""
PREDICTION_BATCH = 256


class BayesianEstimator(BaseEstimator):
    """Base of `BayesianClassifier` and `BayesianRegressor`, which list the arguments."""

    network: Callable[..., keras.Model] | None
    hidden: tuple[int, ...]
    recipe: str | Callable[..., VariationalModel]
    epochs: int | None
    batch_size: int
    num_samples: int
    standardize_inputs: bool
    random_state: Any
    verbose: Any

    def predict_distribution(self, X: ArrayLike, num_samples: int | None = None) -> Any:
        """The predictive distribution, with its uncertainty split; see the estimator's own method."""
        raise NotImplementedError

    def _check_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: Any, **of_y: Any) -> tuple[Any, ...]:
        """Inputs, targets and weights as arrays; remembers the inputs' columns and how they are standardised."""
        for name in ("batch_size", "num_samples"):
            check_count(name, getattr(self, name))
        if self.epochs is not None:
            check_count("epochs", self.epochs, others="None or ")
        array, targets = validate_data(self, X, y, dtype=self._dtype, **of_y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, array, dtype=np.float32, ensure_non_negative=True)
            is_there = sample_weight > 0
            if not is_there.any():
                raise ValueError("`sample_weight` must have an entry above 0, not zeros alone.")
            array, targets, sample_weight = array[is_there], targets[is_there], sample_weight[is_there]
        if self.standardize_inputs:
            self.input_scaler_ = StandardScaler().fit(array, sample_weight=sample_weight)
        else:
            _warn_of_scale(array)
        return self._as_inputs(array), targets, sample_weight

    def _check_inputs(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        return self._as_inputs(validate_data(self, X, dtype=self._dtype, reset=False))

    @property
    def _dtype(self) -> Any:
        # Numbers of tokens stay integers where nothing is standardised.
        return np.float64 if self.standardize_inputs else "numeric"

    def _as_inputs(self, X: np.ndarray) -> np.ndarray:
        X = self.input_scaler_.transform(X) if self.standardize_inputs else X
        return X.astype(np.float32) if X.dtype.kind == "f" else X

    def _build(self, inputs: np.ndarray, num_outputs: int, likelihood: Likelihood) -> VariationalModel:
        """The compiled model, not trained yet; what it draws from then on follows from `random_state`."""
        state = check_random_state(self.random_state).randint(2**31 - 1)
        network_seed, self._order_seed, self._prediction_seed, noise_seed = (
            int(word) % 2**31 for word in np.random.SeedSequence(state).generate_state(4)
        )
        function = partial(default_network, hidden=self.hidden) if self.network is None else self.network
        with seeded(network_seed):
            network = build_network(function, inputs, num_outputs, network_seed)
            if isinstance(network, VariationalModel):
                return network
            # Recipes give layers multiples of their seed, which have to fit into 31 bits.
            return self._apply_recipe(network, likelihood, len(inputs), noise_seed % 100_000)

    def _apply_recipe(
        self, network: keras.Model, likelihood: Likelihood, num_examples: int, seed: int
    ) -> VariationalModel:
        recipe: Any = self.recipe
        if isinstance(recipe, str) and recipe == "auto":
            has_posteriors = any(isinstance(layer, HasKL) for layer in flatten_layers(network))
            recipe = _as_it_is if has_posteriors else by_likelihood(likelihood, num_examples)
        if isinstance(recipe, str) and recipe in recipes.BY_NAME:
            recipe = recipes.BY_NAME[recipe]
        if not callable(recipe):
            raise ValueError(
                f"`recipe` must be 'auto', one of {tuple(recipes.BY_NAME)} or a function recipe(network, likelihood) "
                f"that returns a compiled bdl.VariationalModel, not {recipe!r}."
            )
        model = with_seed(recipe, network, likelihood, seed=seed)
        if not isinstance(model, VariationalModel):
            raise ValueError(f"`recipe` must return a compiled bdl.VariationalModel, not {model!r}.")
        return model

    def _train(self, model: VariationalModel, inputs: np.ndarray, targets: np.ndarray, sample_weight: Any) -> None:
        weights = [] if sample_weight is None else [sample_weight]
        data = Passes([inputs, targets, *weights], self.batch_size, self._order_seed)
        per_pass = data.num_examples / data.batch_size
        self.n_iter_ = max(MIN_EPOCHS, math.ceil(MIN_STEPS / per_pass)) if self.epochs is None else self.epochs
        steps = math.ceil(self.n_iter_ * per_pass)
        logs = max(1, math.floor(steps / max(per_pass, STEPS_PER_LOG)))
        budget = {"epochs": logs, "steps_per_epoch": math.ceil(steps / logs)}
        with own_torch_generator(self._order_seed):
            history = model.fit(data, **budget, shuffle=False, verbose=self.verbose)
        self.model_ = model
        self.history_ = history.history

    def _sample(self, X: ArrayLike, num_samples: int | None) -> Any:
        """The prediction of one set of functions for all rows: that of a row depends on no other one."""
        inputs = self._check_inputs(X)
        size = len(inputs)
        # Another number of rows is compiled anew: few are padded to the next power of two.
        width = min(PREDICTION_BATCH, 1 << (size - 1).bit_length())
        padded = inputs[np.minimum(np.arange(max(size, width)), size - 1)]
        samples = self.num_samples if num_samples is None else num_samples
        prediction = self.model_.predict_distribution(
            padded, samples, width, consistent=True, seed=self._prediction_seed
        )
        return _first_rows(prediction, size)


def _first_rows(prediction: Prediction, size: int) -> Prediction:
    if isinstance(prediction, RegressionPrediction):
        parameters = {name: value[:, :size] for name, value in prediction.parameters.items()}
        return replace(prediction, parameters=parameters)
    arrays: dict[str, Any] = {
        name: value[:size] for name, value in vars(prediction).items() if isinstance(value, np.ndarray)
    }
    return replace(prediction, **arrays)


def output_shape(model: VariationalModel, inputs: np.ndarray) -> tuple[int | None, ...]:
    """Shape of the network's outputs, with None for the batch."""
    spec = keras.KerasTensor((None, *inputs.shape[1:]), inputs.dtype.name)
    return tuple(output_spec(model.network, spec).shape)


def _as_it_is(network: keras.Model, likelihood: Likelihood) -> VariationalModel:
    """The ELBO of a network that has posteriors of its own."""
    model = VariationalModel(network, likelihood)
    model.compile("adam")
    return model


def _warn_of_scale(X: np.ndarray) -> None:
    """Warns of columns whose numbers are far from unit scale; whole numbers may be names of things."""
    if X.dtype.kind != "f":
        return
    size = np.sqrt(np.mean(np.square(X, dtype=np.float64), axis=0))
    largest = int(size.argmax())
    if not 0.1 <= size[largest] <= 10:
        warnings.warn(
            f"Column {largest} of `X` has a root mean square of {size[largest]:.3g}. Priors expect inputs of about 1: "
            "use `standardize_inputs=True`, or scale X.",
            stacklevel=4,
        )
