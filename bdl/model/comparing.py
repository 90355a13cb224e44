"""How probable data are under a network with codes: bounds of the log evidence."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_num_samples
from bdl.bounds import Bounds
from bdl.keras_internals import flatten_layers, without_gradients
from bdl.latents import kl_of_draws, take_local_kl
from bdl.likelihoods.heads import Heads
from bdl.protocols import HasKL
from bdl.training import data as training_data
from bdl.training.soundness import checked_data
from bdl.uncounted import counted


class Comparing:
    """Bounds of a model of a network; see `bdl.VariationalModel`."""

    network: keras.Model
    _heads: Heads

    def build_on(self, inputs: Any) -> None:
        """Builds the network, if it is not, by calling it on inputs."""
        raise NotImplementedError

    def bounds(self, x: Any, y: Any, num_samples: int = 50, batch_size: int = 32) -> Bounds:
        """The ELBO and the importance weighted bound of the log evidence, with standard errors, in nats.

        All randomness must be in latent variables of single examples, whose layers add `log q(z | x) - log p(z)` of
        their draw when it is asked for (`bdl.layers.NormalLatent`), or draw from their prior at prediction.

        Args:
            x: Inputs, arrays.
            y: Labels; of an autoencoder the inputs.
            num_samples: Draws of each example inside the logarithm.
            batch_size: Examples evaluated at a time, all with their draws.

        Raises:
            ValueError: if weights of the network are random, or an argument or the data are not sound.

        Source: Burda et al. 2016, arXiv 1509.00519; see `bdl.bounds`.
        """
        num_samples = check_num_samples(num_samples, "draws inside the logarithm")
        random = [layer.name for layer in flatten_layers(self.network) if isinstance(layer, HasKL)]
        if random:
            raise ValueError(
                f"`network` must not have random weights for these bounds, as {random} have: an average over them "
                "inside the logarithm of each example bounds nothing. The ELBO is what `evaluate` returns."
            )
        x, y, _ = checked_data(self, self._heads, x, y, {}, None)
        size = training_data.check_lengths({"x": x, "y": y})
        found = []
        for start in range(0, size, batch_size):
            batch = keras.tree.map_structure(lambda leaf, at=start: np.asarray(leaf)[at : at + batch_size], (x, y))
            given = keras.tree.map_structure(lambda leaf: np.repeat(leaf, num_samples, axis=0), batch)
            found.append(np.reshape(self._log_weights(*given), (-1, num_samples)).T)
        return Bounds.of(np.concatenate(found, axis=1)[None])

    def _log_weights(self, x: Any, y: Any) -> np.ndarray:
        """Of one draw of each example, `(batch,)`, in nats."""
        with without_gradients(), counted(), kl_of_draws():
            outputs = self.network(keras.tree.map_structure(ops.convert_to_tensor, x), training=False)
            local = take_local_kl(self.network)
            nll = self._heads.nll(y, outputs, self._heads.weights(None, outputs))
        log_weights = -ops.convert_to_numpy(nll)
        return log_weights if local is None else log_weights - ops.convert_to_numpy(local)
