"""Where the guides of global sites are: what a fit's convergence is judged by."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import current_value, without_gradients
from bdl.random import Tensor
from bdl.report import entry_names
from bdl.svi.derivatives import Kept
from bdl.svi.guides import Guide
from bdl.training.iterates import Iterate

NUM_DRAWS = 64
"""Draws of each guide, of the same noise at every read, for its means and scales."""


class Watched:
    """Iterates of a model of a story; see `bdl.training.iterates.HasIterates`."""

    guides: list[Guide]
    kept: Kept
    latent: dict[str, Any]
    num_chains: int

    def iterate(self) -> Iterate | None:
        """Means and scales of the guides of global sites, of all chains; None where each is a point."""
        guides = self._broad()
        if not guides:
            return None
        half = np.random.default_rng(0).standard_normal((NUM_DRAWS // 2, max(guide.noise_size for guide in guides)))
        noise = np.concatenate([half, -half])
        weights = [weight for guide in guides for weight in guide.weights if "float" in weight.dtype]

        def moments(values: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
            found = []
            with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
                for guide in guides:
                    own = ops.convert_to_tensor(noise[:, : guide.noise_size], dtype=guide.variable_dtype)
                    draws = guide.distribution().draw(own)
                    mean = ops.mean(draws, axis=0)
                    found.append((mean, 0.5 * ops.log(ops.mean((draws - mean) ** 2, axis=0))))
            return found

        with without_gradients():
            found = self.kept("iterate", moments, [current_value(weight) for weight in weights])
        means, scales = zip(*found, strict=True)
        return Iterate(*(np.concatenate([ops.convert_to_numpy(each) for each in part]) for part in (means, scales)))

    def iterate_names(self) -> list[str]:
        """Names of the sites, with the number on the real line where there are several, and the chain."""
        guides = self._broad()
        found = []
        for place, guide in enumerate(guides):
            chain = f" of chain {place // (len(guides) // self.num_chains)}" if self.num_chains > 1 else ""
            for site, size in guide.sizes.items():
                found += [f"{name}{chain}" for name in entry_names(site, () if size == 1 else (size,))]
        return found

    def _broad(self) -> list[Guide]:
        """The guides of global sites that are no points."""
        return [guide for guide in self.guides if not guide.is_local and not guide.is_point]
