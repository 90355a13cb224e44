"""The gold standard for a story: draws of its posterior by Markov chains, without a guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from bdl.random import Tensor, draw_key, fold_in
from bdl.svi.checks import Chains, nuts_flat
from bdl.svi.derivatives import in_graph
from bdl.svi.estimators import Estimator
from bdl.svi.rows import as_data, as_tensors
from bdl.svi.simulation import combination_of
from bdl.svi.start import on_the_real_line
from bdl.svi.story import Story
from bdl.svi.tracing import trace


@dataclass(frozen=True, eq=False)
class Reference(Mapping[str, np.ndarray]):
    """Draws of a posterior by site, as `SVI.posterior` gives them, and the chains that they come from.

    Args:
        draws: By site `(chains * draws, *shape)`, and `(..., rows, *shape)` of local ones.
        chains: On the real line, with their R-hat, effective sample size and divergences.
    """

    draws: dict[str, np.ndarray]
    chains: Chains

    def __getitem__(self, site: str) -> np.ndarray:
        return self.draws[site]

    def __iter__(self) -> Any:
        return iter(self.draws)

    def __len__(self) -> int:
        return len(self.draws)


def nuts(
    story: Story,
    data: Any,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    networks: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> Reference:
    """Draws from the posterior of a story with the No-U-Turn sampler, all its latent sites together.

    For what has few latent numbers: local sites have a coordinate for each row. Discrete ones of few values are summed
    out of the density; each draw has a draw of theirs given the rest.

    Args:
        story: The story.
        data: All its data.
        num_samples: Draws of each chain that are kept.
        num_warmup: Draws before them.
        num_chains: Number of chains.
        networks: Layers by the names of the story's keyword arguments; their weights stay as they are.
        start: Values of sites at which the chains begin; others begin at the median of their prior.
        seed: Integer; the same one gives the same draws.
        dtype: Of the chains.

    Raises:
        ValueError: as `bdl.svi.story.trace` and `bdl.svi.checks.nuts_flat` do.

    Source: Hoffman and Gelman 2014, "The No-U-Turn sampler".
    """
    tensors = as_tensors(as_data(data, dtype), dtype)
    found = trace(story, tensors, draw_key(seed), networks, start, dtype)
    sites = {site.name: site for site in found.sites if site.kind != "observed"}
    estimator = Estimator(story, sites, (), dict(networks or {}), dtype=dtype)
    point = on_the_real_line(found, estimator, tensors)
    shapes = {name: each.shape for name, each in point.items()}
    ends = np.cumsum([0, *(each.size for each in point.values())])

    def split(u: Tensor) -> dict[str, Tensor]:
        parts = zip(shapes, ends[:-1], ends[1:], strict=True)
        return {name: ops.reshape(u[begin:end], shapes[name]) for name, begin, end in parts}

    def values(draw: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        real = split(draw[0])
        combination = combination_of(estimator, tensors, real, fold_in(draw_key(seed), draw[1]))
        visits = estimator.visit(tensors, real, until=list(sites)[-1], combination=combination)
        return {visit.name: visit.value for visit in visits if visit.name in sites}

    first = np.concatenate([each.ravel() for each in point.values()]).astype(dtype)
    # NumPy takes the chains one after the other, without XLA on TensorFlow, whose vectorized rows lose the gradient.
    each_chain = ops.map if found.host_calls else ops.vectorized_map
    chains = nuts_flat(
        lambda u: each_chain(lambda one: estimator.log_joint(tensors, split(one)), u),
        first,
        num_samples,
        num_warmup,
        num_chains,
        seed,
        is_compilable=not found.host_calls,
    )
    flat = ops.convert_to_tensor(chains.draws.reshape(-1, len(first)).astype(dtype))
    draws = in_graph(lambda *drawn: ops.map(values, drawn))(flat, ops.arange(flat.shape[0], dtype="int32"))
    return Reference({name: ops.convert_to_numpy(each) for name, each in draws.items()}, chains)
