"""Before a fit: the story is traced, guides and networks get their variables, and guides move to where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import without_gradients
from bdl.random import draw_key, fold_in
from bdl.svi.baseline import LearnedBaseline, baselines_for
from bdl.svi.chains import ChainLosses, copied, scattered
from bdl.svi.conjugate import check_conjugate
from bdl.svi.control import ControlVariate, controls_of
from bdl.svi.estimators import Estimator
from bdl.svi.files import described, invented
from bdl.svi.guides import Guide
from bdl.svi.guides.selection import assign_guides, requested
from bdl.svi.rows import as_data, as_tensors, first_batch
from bdl.svi.start import Start, find_starts, on_the_real_line, search_of, values_of
from bdl.svi.story import Site, Story, num_rows
from bdl.svi.tracing import Trace, check_finite, trace
from bdl.training import data as training_data
from bdl.training.averaging import TailAverage
from bdl.training.steps import strategy_scope


class Beginning:
    """Sites and guides of a model of a story; see `bdl.svi.SVI`.

    Attributes:
        sites: What the trace found; empty before it.
        guides: Bound to the latent sites, of all chains one after the other; empty before the trace.
        num_chains: Number of chains.
        baselines: Learned ones of the guides of discrete sites, of all chains one after the other.
        controls: Control variates of the guides; empty where there are none.
        chain_losses: What tells chains apart; None of a single one, or before the trace.
        described: Shapes and dtypes of the batch that was traced last.
        host_calls: Names of functions in the story that NumPy computes.
        is_started: Whether guides are where a fit begins, or beyond.
        convergence: What was seen of the last fit's convergence, which prints as a sentence; None of nothing.
    """

    story: Story
    networks: dict[str, keras.Layer]
    start: Any
    requested_guide: Any
    averaging: bool
    baseline: Any
    num_chains: int
    control_variate: str | None
    seed: int
    compute_dtype: str
    dtype_policy: Any
    estimator: Estimator
    built: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sites: tuple[Site, ...] = ()
        self.guides: list[Guide] = []
        self.baselines: list[LearnedBaseline] = []
        self.controls: list[ControlVariate | None] = []
        self.described: Any = None
        self.host_calls: tuple[str, ...] = ()
        self.is_started = False
        self.average: TailAverage | None = None
        self.convergence: Any = None
        self.chain_losses: ChainLosses | None = None
        self._site_trackers: list[keras.metrics.Mean] = []

    @property
    def latent(self) -> dict[str, Site]:
        """The latent sites by name, once the story has been traced."""
        return {site.name: site for site in self.sites if site.kind != "observed"}

    @property
    def guided(self) -> dict[str, Site]:
        """The latent sites that have guides: all but the enumerated ones."""
        return {name: site for name, site in self.latent.items() if site.kind != "enumerated"}

    @property
    def chain(self) -> int:
        """Number of the chain whose results are given: that of the highest ELBO, or the one that was picked.

        `model.chain = 2` picks one, `model.chain = None` goes back to the best, which may change in a further fit.
        """
        return 0 if self.chain_losses is None else self.chain_losses.chosen

    @chain.setter
    def chain(self, chain: int | None) -> None:
        if chain is not None:
            self._check_chain(chain)
        if self.chain_losses is not None:
            self.chain_losses.pick(chain)
        elif self.num_chains > 1:
            raise ValueError(f"`chain` must be None before the story has been traced, not {chain!r}. Call fit before.")

    def guides_of(self, chain: int) -> list[Guide]:
        """The guides of a chain; empty before the trace.

        Raises:
            ValueError: if there is no such chain.
        """
        self._check_chain(chain)
        number = len(self.guides) // self.num_chains
        return list(self.guides[chain * number : (chain + 1) * number])

    def baselines_of(self, chain: int) -> dict[int, LearnedBaseline]:
        """The learned baselines of a chain by the places of its guides; none where draws measure each other."""
        places = [place for place, guide in enumerate(self.guides_of(chain)) if guide.is_discrete]
        own = self.baselines[chain * len(places) : (chain + 1) * len(places)]
        return dict(zip(places, own, strict=True)) if own else {}

    def guide_of(self, site: str, chain: int | None = None) -> Guide:
        """The guide of a latent site; `guide_of(site).trainable = False` freezes it.

        Args:
            site: Name of the site.
            chain: Number of the chain, each of which has a guide of its own; None takes `model.chain`.

        Raises:
            ValueError: if there is no such site yet, or no such chain.
        """
        for guide in self.guides_of(self.chain if chain is None else chain):
            if site in guide.sizes:
                return guide
        raise ValueError(f"`site` must be one of the sites with a guide, {list(self.guided)}, not {site!r}.")

    def checked_data(self, x: Any, argument: str = "x", is_read: bool = True) -> Any:
        """Data as `bdl.svi.rows.as_data` makes them, sound and fit for the guides; of a data set nothing is known.

        Args:
            x: Arrays in any structure, or a data set.
            argument: Name of the argument, for the message.
            is_read: Whether the rows' posteriors are to be read, and not fitted.

        Raises:
            ValueError: as `as_data` and `Guide.check_data` do.
        """
        x = as_data(x, self.compute_dtype, argument)
        if not training_data.is_data_set(x):
            for _, guide in requested(self.requested_guide):
                guide.check_data(x, argument, is_read)
        return x

    def trace_on(self, data: Any) -> Trace:
        """Traces the story on a batch; the first time guides and networks get their variables, at the trace's values.

        Args:
            data: A batch of data.

        Raises:
            ValueError: as `bdl.svi.tracing.trace` and `assign_guides` do, if the sites are not those traced before,
                the support of a global site depends on data, or a guide draws discrete values that are impossible.
        """
        given = values_of(self.start)
        key = fold_in(draw_key(0), 0)
        guided = [name for names, _ in requested(self.requested_guide) for name in names]
        dtype = self.compute_dtype
        found = trace(self.story, as_tensors(data, dtype), key, self.networks, given, dtype, guided)
        model: Any = self
        self.take_host_calls(found.host_calls)
        is_first = not self.sites
        if is_first:
            with strategy_scope(self):
                self.bind_guides(found.sites, found.data)
        else:
            model.check_sites(found.sites)
        self.described = described(found.data)
        point = on_the_real_line(found, self.estimator)
        self._check_globals(found.data, point)
        if is_first:
            self._move([Start(each) for each in self._points(found, point)])
        self._check_draws(found.data)
        if is_first:
            check_conjugate(self.estimator, found.data)
        return found

    def _points(self, found: Trace, point: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Where each chain begins, or its search for the mode: the first at the trace's values, the others around."""
        names = [site.name for site in self.sites if site.kind == "global"]
        key = fold_in(draw_key(self.seed), 0)

        def log_density(at: Mapping[str, np.ndarray]) -> float:
            real = {name: ops.convert_to_tensor(numbers, dtype=self.compute_dtype) for name, numbers in at.items()}
            with without_gradients():
                return float(ops.convert_to_numpy(self.estimator.log_joint(found.data, real)))

        others = range(1, self.num_chains)
        return [point, *(scattered(point, names, log_density, fold_in(key, chain)) for chain in others)]

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

    def bind_guides(
        self,
        sites: tuple[Site, ...],
        data: Any = None,
        others: Sequence[Guide] | None = None,
        baselines: Sequence[LearnedBaseline] | None = None,
    ) -> None:
        """Gives guides their sites and all the model its variables.

        Args:
            sites: What a trace found.
            data: The batch that was traced; those of a file come without.
            others: Guides of the other chains, which a file has; None makes them.
            baselines: Learned ones, which a file has; None makes them.

        Raises:
            ValueError: as `assign_guides` and `bdl.svi.chains.copied` do.
        """
        self.sites = tuple(sites)
        latent = self.guided
        assignment = assign_guides(self.requested_guide, self.latent)
        guides = [guide for _, guide in assignment]
        for names, guide in assignment:
            if not guide.sizes:
                given = sum(latent[name].size for name in guide.given)
                guide.dtype_policy = self.dtype_policy
                sizes = {name: latent[name].size for name in names}
                guide.bind(sizes, data, given, {name: latent[name].shape for name in names})
        if others is None:
            others = [copy for chain in range(1, self.num_chains) for copy in copied(guides, chain)]
        self.guides = [*guides, *others]
        if self.baseline != "leave_one_out":
            drawn: list[Any] = [guide for guide in self.guides if guide.is_discrete]
            sizes_given = [sum(latent[name].size for name in guide.given) for guide in drawn]
            self.baselines = list(baselines or baselines_for(self.baseline, drawn, data, sizes_given))
        if self.control_variate is not None:
            self.controls = controls_of(self.guides, self.dtype_policy)
        if self.num_chains > 1:
            model: Any = self
            self.chain_losses = ChainLosses(model, self.num_chains)
        if self.averaging:
            weights = [weight for guide in self.guides for weight in guide.iterates]
            networks = [weight for layer in self.networks.values() for weight in layer.weights]
            self.average = TailAverage(self, [*weights, *(each for each in networks if "float" in each.dtype)])
        self._site_trackers = [keras.metrics.Mean(name=f"kl_{name}", dtype="float32") for name in latent]
        self.built = True

    def take_host_calls(self, names: Sequence[str]) -> None:
        """Notes which functions in the story NumPy computes; with any of them the model is compiled without XLA."""
        self.host_calls = tuple(names)
        model: Any = self
        if self.host_calls:
            model.leave_xla()

    def begin(self, x: Any, batch_size: int | None, sample_weight: Any = None) -> None:
        """Traces the story on a first batch; before the first fit, moves the guides to where it begins.

        Raises:
            ValueError: as `trace_on`, `trace_first` and `bdl.svi.start.find_start` do, or if a mode is to be found of
                data that are no arrays.
        """
        found = self.trace_first(x, batch_size)
        if not self.is_started and search_of(self.start) is not None:
            if found is None or training_data.is_data_set(x):
                raise ValueError(
                    f"`start` must be 'prior' or a dict of values, not {self.start!r}, unless `x` is arrays."
                )
            whole, key = as_tensors(x, self.compute_dtype), fold_in(draw_key(0), 1)
            points = self._points(found, on_the_real_line(found, self.estimator))
            self._move(find_starts(self.start, points, found, self.estimator, whole, key, sample_weight))
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

    def _move(self, starts: Sequence[Start]) -> None:
        for chain, start in enumerate(starts):
            for guide in self.guides_of(chain):
                if not guide.is_local:
                    guide.start_at(*start.of(guide.sizes))

    def _check_chain(self, chain: Any) -> None:
        if not isinstance(chain, int) or isinstance(chain, bool) or not 0 <= chain < self.num_chains:
            raise ValueError(f"`chain` must be an integer from 0 to {self.num_chains - 1}, not {chain!r}.")
