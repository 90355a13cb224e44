"""Recurrent layers with a posterior over their kernels: one draw of the weights serves the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from bdl.layers.named import NamedVariational
from bdl.random import Tensor


def _of_the_layer(name: str) -> property:
    """An attribute that is the wrapped layer's own."""
    return property(lambda self: getattr(self.layer, name), lambda self, value: setattr(self.layer, name, value))


class NamedRecurrent(NamedVariational):
    """A recurrent Keras layer whose kernel and recurrent kernel are sampled, once per call and not once per time step.

    It goes into `keras.layers.Bidirectional` as the Keras layer does. Each direction has a posterior and noise of
    its own: the layer that reads backwards derives another seed from the one that is given.

    Args:
        kernel_prior: `bdl.priors.Prior` of the kernel and of the recurrent kernel, or its name. Default: a Gaussian
            around fitted means, `TiedMean(WidthNormal(), mean_prior=Normal(0, 3))`.
        kernel_posterior: `bdl.posteriors.Posterior` of both kernels, or its name. Default: `MeanFieldNormal()`.
    """

    go_backwards = _of_the_layer("go_backwards")
    return_sequences = _of_the_layer("return_sequences")
    return_state = _of_the_layer("return_state")
    stateful = _of_the_layer("stateful")
    states = _of_the_layer("states")
    use_cudnn = _of_the_layer("use_cudnn")
    zero_output_for_mask = _of_the_layer("zero_output_for_mask")

    def weight_names(self, layer: keras.Layer) -> tuple[Sequence[str], Sequence[str]]:
        """The kernels of the inputs and of the state, and the bias."""
        return ("kernel", "recurrent_kernel"), ("bias",)

    def get_initial_state(self, batch_size: int) -> list[Tensor]:
        """The state before the first step: zeros."""
        return self.layer.get_initial_state(batch_size)

    def _noise_seed(self) -> int | None:
        # Bidirectional makes both directions from one configuration, seed included.
        if self.seed is None or not self.go_backwards:
            return self.seed
        return int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0]) & 0x7FFFFFFF


class LSTMReparameterization(NamedRecurrent, wraps=layers.LSTM, estimator="reparameterization"):
    """`keras.layers.LSTM` with one sampled kernel and recurrent kernel per call, for all time steps.

    Input shape `(batch, time, features)`, output shape `(batch, units)`, or
    `(batch, time, units)` with `return_sequences=True`.

    Source: Fortunato et al. 2017, "Bayesian recurrent neural networks", section 3.

    Example:
    >>> LSTMReparameterization(3)(np.ones((2, 5, 4))).shape == (2, 3)
    True
    """


class GRUReparameterization(NamedRecurrent, wraps=layers.GRU, estimator="reparameterization"):
    """`keras.layers.GRU` with one sampled kernel and recurrent kernel per call, for all time steps.

    Input shape `(batch, time, features)`, output shape `(batch, units)`, or
    `(batch, time, units)` with `return_sequences=True`.

    Source: Fortunato et al. 2017, "Bayesian recurrent neural networks", section 3.

    Example:
    >>> GRUReparameterization(3, return_sequences=True)(np.ones((2, 5, 4))).shape == (2, 5, 3)
    True
    """


class SimpleRNNReparameterization(NamedRecurrent, wraps=layers.SimpleRNN, estimator="reparameterization"):
    """`keras.layers.SimpleRNN` with one sampled kernel and recurrent kernel per call, for all time steps.

    Input shape `(batch, time, features)`, output shape `(batch, units)`, or
    `(batch, time, units)` with `return_sequences=True`.

    Source: Fortunato et al. 2017, "Bayesian recurrent neural networks", section 3.

    Example:
    >>> SimpleRNNReparameterization(3)(np.ones((2, 5, 4))).shape == (2, 3)
    True
    """
