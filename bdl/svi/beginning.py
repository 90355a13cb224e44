"""Before a fit: the story is traced, guides and networks get their variables, and guides move to where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.random import draw_key, fold_in
from bdl.svi.estimators import Estimator
from bdl.svi.files import described, invented
from bdl.svi.guides import Guide
from bdl.svi.guides.selection import assign_guides, named_sites
from bdl.svi.rows import as_tensors, first_batch
from bdl.svi.start import Start, find_start, on_the_real_line
from bdl.svi.story import Site, Story, num_rows
from bdl.svi.tracing import Trace, check_finite, trace
from bdl.training import data as training_data
from bdl.training.averaging import TailAverage


class Beginning:
    """Sites and guides of a model of a story; see `bdl.svi.SVI`.

    Attributes:
        sites: What the trace found; empty before it.
        guides: Bound to the latent sites; empty before the trace.
        described: Shapes and dtypes of the batch that was traced last.
        is_started: Whether guides are where a fit begins, or beyond.
    """

    story: Story
    networks: dict[str, keras.Layer]
    start: Any
    requested_guide: Any
    averaging: bool
    compute_dtype: str
    dtype_policy: Any
    estimator: Estimator
    built: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sites: tuple[Site, ...] = ()
        self.guides: list[Guide] = []
        self.described: Any = None
        self.is_started = False
        self.average: TailAverage | None = None
        self._site_trackers: list[keras.metrics.Mean] = []

    @property
    def latent(self) -> dict[str, Site]:
        """The latent sites by name, once the story has been traced."""
        return {site.name: site for site in self.sites if site.kind != "observed"}

    @property
    def guided(self) -> dict[str, Site]:
        """The latent sites that have guides: all but the enumerated ones."""
        return {name: site for name, site in self.latent.items() if site.kind != "enumerated"}

    def guide_of(self, site: str) -> Guide:
        """The guide of a latent site; `guide_of(site).trainable = False` freezes it.

        Raises:
            ValueError: if there is no such site yet.
        """
        for guide in self.guides:
            if site in guide.sizes:
                return guide
        raise ValueError(f"`site` must be one of the sites with a guide, {list(self.guided)}, not {site!r}.")

    def trace_on(self, data: Any) -> Trace:
        """Traces the story on a batch; the first time guides and networks get their variables, at the trace's values.

        Args:
            data: A batch of data.

        Raises:
            ValueError: as `bdl.svi.tracing.trace` and `assign_guides` do, if the sites are not those traced before,
                the support of a global site depends on data, or a guide draws discrete values that are impossible.
        """
        given = self.start if isinstance(self.start, Mapping) else None
        key = fold_in(draw_key(0), 0)
        guided, dtype = named_sites(self.requested_guide), self.compute_dtype
        found = trace(self.story, as_tensors(data, dtype), key, self.networks, given, dtype, guided)
        model: Any = self
        is_first = not self.sites
        if is_first:
            self.bind_guides(found.sites, found.data)
        else:
            model.check_sites(found.sites)
        self.described = described(found.data)
        point = on_the_real_line(found, self.estimator)
        self._check_globals(found.data, point)
        if is_first:
            self._move(Start(point))
        self._check_draws(found.data)
        return found

    def _check_draws(self, batch: Any) -> None:
        """Refuses guides of discrete sites that draw what prior or likelihood rule out: it would cost infinitely."""
        estimator = self.estimator
        if not any(guide.is_discrete for guide in self.guides):
            return
        repeated = estimator.combinations.repeat(batch)
        for real in (estimator.draws(batch, draw_key(0), 2).one(number).real for number in range(2)):
            for visit in estimator.visit_every(repeated, real, num_rows(batch)):
                check_finite(visit, estimator.combinations, drawn=", where discrete sites are drawn from their guides")

    def _check_globals(self, data: Any, point: dict[str, np.ndarray]) -> None:
        """Refuses a story in which the value of a global site depends on data or on a local site.

        It does so by its support, or by its prior where the guide follows that. It would be another one on each batch,
        and there would be no global posterior. At the same unconstrained numbers its values on the traced batch are
        those on invented numbers. Where the story fails on the latter, `posterior()` will say so.
        """
        names = [site.name for site in self.sites if site.kind == "global"]
        if not names:
            return
        real = {name: ops.convert_to_tensor(numbers, dtype=self.compute_dtype) for name, numbers in point.items()}
        moved = {name: each if name in names else each + 1.0 for name, each in real.items()}
        following = [name for guide in self.guides if guide.follows_prior for name in guide.sizes]

        def values(batch: Any, real: dict[str, Any]) -> list[np.ndarray]:
            visits = {visit.name: visit.value for visit in self.estimator.visit(batch, real, until=names[-1])}
            drawn = self.estimator.draws(batch, draw_key(0), 1, is_global=True).real if following else {}
            found = [*(visits[name] for name in names), *(drawn[name] for name in following)]
            return [ops.convert_to_numpy(each) for each in found]

        ours = values(data, real)
        try:
            others = values(invented(self.described), moved)
        except Exception:
            return
        what = ["support"] * len(names) + ["prior, which the guide follows,"] * len(following)
        for name, kind, one, other in zip([*names, *following], what, ours, others, strict=True):
            if not np.allclose(one, other):
                raise ValueError(
                    f"The {kind} of the global sites {[name]} must not depend on data or local sites: their values "
                    "would differ from batch to batch. Compute such bounds before, and let the story close over them."
                )

    def bind_guides(self, sites: tuple[Site, ...], data: Any = None) -> None:
        """Gives guides their sites and all the model its variables; those of a file come without data."""
        self.sites = tuple(sites)
        latent = self.guided
        assignment = assign_guides(self.requested_guide, self.latent)
        self.guides = [guide for _, guide in assignment]
        for names, guide in assignment:
            if not guide.sizes:
                given = sum(latent[name].size for name in guide.given)
                guide.dtype_policy = self.dtype_policy
                sizes = {name: latent[name].size for name in names}
                guide.bind(sizes, data, given, {name: latent[name].shape for name in names})
        if self.averaging:
            layers = [*self.guides, *self.networks.values()]
            weights = [weight for layer in layers for weight in layer.weights if "float" in weight.dtype]
            self.average = TailAverage(self, weights)
        self._site_trackers = [keras.metrics.Mean(name=f"kl_{name}", dtype="float32") for name in latent]
        self.built = True

    def begin(self, x: Any, batch_size: int | None, sample_weight: Any = None) -> None:
        """Traces the story on a first batch; before the first fit, moves the guides to where it begins.

        Raises:
            ValueError: as `trace_on`, `trace_first` and `bdl.svi.start.find_start` do, or if a mode is to be found of
                data that are no arrays.
        """
        found = self.trace_first(x, batch_size)
        if not self.is_started and not isinstance(self.start, Mapping) and self.start != "prior":
            if found is None or training_data.is_data_set(x):
                raise ValueError(
                    f"`start` must be 'prior' or a dict of values, not {self.start!r}, unless `x` is arrays."
                )
            whole, key = as_tensors(x, self.compute_dtype), fold_in(draw_key(0), 1)
            self._move(find_start(self.start, found, self.estimator, whole, key, sample_weight))
        self.is_started = True

    def trace_first(self, x: Any, batch_size: int | None) -> Trace | None:
        """Traces the story on a first batch; None where reading one would consume it.

        Raises:
            ValueError: if there is none and the story was not traced before.
        """
        batch = first_batch(x, batch_size)
        if batch is not None:
            return self.trace_on(batch)
        if not self.built:
            raise ValueError(
                f"The story must be traced before it is fitted to {type(x).__name__}, which can be read once only. "
                "Call model.trace_on(batch) first."
            )
        return None

    def _move(self, start: Start) -> None:
        for guide in self.guides:
            if not guide.is_local:
                guide.start_at(*start.of(guide.sizes))
