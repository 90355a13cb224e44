"""Prediction of a model that holds a network and its likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from bdl.arguments import check_count
from bdl.export import export_distribution
from bdl.prediction.predict import shown
from bdl.prediction.requests import PART_SIZE, Request, mean_of_prediction, parts_with, predict_with
from bdl.sampling import Sampler
from bdl.training import data as training_data


class Predicting:
    """`predict`, `predict_distribution` and `export` of a model's network, by one sampler that the model keeps."""

    network: keras.Model
    likelihood: Any

    def drawn_network(self) -> keras.Model:
        """The network with its noise."""
        raise NotImplementedError

    def _begin_predicting(self, weights_lock: Any) -> None:
        """Before any prediction; the lock is held while weights are copied or written, and by whoever changes them."""
        self._sampler: Sampler | None = None
        self._weights_lock = weights_lock

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        num_samples: int = 64,
    ) -> Any:
        """The predictive mean over weight samples: class probabilities, or the mean of the targets.

        Args:
            x: Inputs, as `bdl.predict_distribution` takes them: arrays of any kind or a data set.
            batch_size: Number of inputs evaluated at a time; a data set comes in batches of its own.
            verbose: Accepted for Keras' sake; there is no progress display.
            steps: Number of batches; None takes all.
            callbacks: Not supported.
            num_samples: Number of Monte Carlo samples.

        Returns:
            Array `(n, ...)`; several outputs in the structure of `likelihood`. `predict_distribution` gives the
            uncertainty as well.
        """
        if callbacks:
            raise ValueError("`callbacks` are not supported by predict: all samples of a batch are one compiled loop.")
        request = Request(num_samples, batch_size, steps=steps)
        return mean_of_prediction(predict_with([self._own_sampler()], x, request))

    def predict_on_batch(self, x: Any, num_samples: int = 64) -> Any:
        """`predict` of inputs that are evaluated together: the predictive mean, not the outputs of one draw."""
        rows = training_data.check_lengths({"x": x})
        return mean_of_prediction(predict_with([self._own_sampler()], x, Request(num_samples, rows)))

    def predict_distribution(
        self,
        x: Any,
        num_samples: int = 64,
        batch_size: int = 32,
        consistent: bool = False,
        seed: int | None = None,
        keep_outputs: bool = False,
        summary: bool | Sequence[float] = False,
        first_row: int = 0,
    ) -> Any:
        """Predicts with uncertainty; arguments, result and errors as `bdl.predict_distribution`."""
        request = Request(num_samples, batch_size, consistent, seed, keep_outputs, summary, first_row)
        return predict_with([self._own_sampler()], x, request)

    def predict_parts(
        self,
        x: Any,
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
        """Predicts one part of the data after the other; arguments, parts and errors as `bdl.predict_parts`."""
        check_count("part_size", part_size)
        request = Request(num_samples, batch_size, consistent, seed, keep_outputs, summary, first_row)
        parts = parts_with([self._own_sampler()], x, request, part_size)
        return shown(parts, x) if verbose else parts

    def _own_sampler(self) -> Sampler:
        network = self.drawn_network()
        if self._sampler is None or self._sampler.network is not network:
            self._sampler = Sampler(network, self.likelihood, self._weights_lock)
        return self._sampler

    def export(self, filepath: Any, format: str = "tf_saved_model", verbose: Any = None, **kwargs: Any) -> None:
        """Exports the prediction with its uncertainty; arguments, outputs and errors as `bdl.export_distribution`.

        `model.network.export` exports raw outputs of one draw instead.
        """
        with self._weights_lock:
            export_distribution(self.drawn_network(), self.likelihood, filepath, format, verbose=verbose, **kwargs)
