"""Draws of a step, and what each of them costs: the terms from which `bdl.elbo.elbo_parts` makes the objective.

A step evaluates the story S times. Its noise comes in mirrored pairs: the second of a pair is the reflection `-e` of
the first. Each draw is still standard normal, so that the gradient is unbiased, and what is odd in the noise, most of
its variance, cancels within the pair. Of an odd number of draws the last has no partner.

The divergence of a site is in closed form where its prior and its guide are Gaussian on the real line, given the draw
of the sites before it, and the guide's density does not stick (`bdl.svi.guides.gaussian`); otherwise `log q - log p` of
the draw itself, with the log determinant of the way to the support in `log q`. The gradient is that of the draw as a
function of the guide's variables (the pathwise, reparameterization gradient; Kingma and Welling 2014, arXiv 1312.6114;
Rezende et al. 2014, arXiv 1401.4082).

Discrete local sites without a guide, of few values, are summed out of each draw (`bdl.svi.enumeration`): the NLL of a
row is that given its other latent values, the divergence of another local site that from its prior without the
indicators. What comes after an indicator in the story has a prior that is a mixture, and the divergence is that of the
draw itself. Discrete local sites with a guide are drawn, with noise that is not mirrored, and have the gradients of
`bdl.svi.score`.

With `objective="multi_sample"` one draw of the globals is shared by S draws of the locals, whose mean is taken inside
the logarithm of each row: the importance weighted bound (Burda et al. 2016, arXiv 1509.00519). Globals within it would
not give a bound, for they are shared by all rows. Every local divergence is then that of the draw itself. The
bound needs no independence of its samples, only that each is a draw of the guide, so that these are mirrored, too. On
logits of binomial counts, with the best Gaussian of each, mirrored samples came up to nine times nearer to the evidence
(2 of 2: .0002 nats below it in place of .0017, 2 samples), and the gradient in the globals' mean had 3 to 180 times
less variance, that in the guide's own log scale twice as much. A guide that is twice too wide is bounded worse by them:
.80 nats below in place of .24 with 2 samples, .026 in place of .014 with 20. The variables of the locals' guides have
doubly reparameterized gradients (`bdl.svi.doubly`), but for networks with a state of their own, such as seeds, in the
story, and for families of which a draw's score is not known.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from keras import ops

from bdl.random import Tensor, fold_in, normal, of_examples
from bdl.svi import supports
from bdl.svi.baseline import LearnedBaseline
from bdl.svi.conjugate import is_point, placed, prior_of, value_of
from bdl.svi.control import ControlVariate, controlled, taught
from bdl.svi.cubature import CUBATURE, num_points, points_of
from bdl.svi.doubly import handing_on, shares_of
from bdl.svi.draws import Draw, Draws
from bdl.svi.enumeration import Combinations, Summed, sum_out
from bdl.svi.following import follow
from bdl.svi.guides import Guide, PerRow
from bdl.svi.guides.sticking import told_to_stick
from bdl.svi.refining import refined
from bdl.svi.score import score_terms
from bdl.svi.story import Global, Observed, Site, Story, Variable, Visit, num_rows, run, support_of_site


@dataclass(frozen=True, eq=False)
class Terms:
    """What the draws of a step cost, in nats.

    Args:
        nll: Of each draw and row, `(draws, rows)`.
        local_kl: Of each local site with a guide, draw and row, `(draws, rows)`, by site.
        global_kl: Of each global site, mean over the draws, scalars by site.
        by_site: NLL and local divergences by site, `(draws, rows)`, none of which depends on the draw of a later one.
    """

    nll: Tensor
    local_kl: dict[str, Tensor]
    global_kl: dict[str, Tensor]
    by_site: dict[str, Tensor]

    def costs(self, temperature: Tensor | float, sites: Collection[str] | None = None) -> Tensor:
        """Of each draw and row, `(draws, rows)`, all of it or that of some sites."""
        if sites is None:
            return self.nll + ops.cast(temperature, self.nll.dtype) * sum(self.local_kl.values())
        weighted = {
            name: ops.cast(temperature, self.nll.dtype) * cost if name in self.local_kl else cost
            for name, cost in self.by_site.items()
        }
        return sum((weighted[name] for name in sites), ops.zeros_like(self.nll))


@dataclass(frozen=True, eq=False)
class Estimator:
    """Draws from guides, and tells the terms of the objective.

    Args:
        story: The story.
        sites: The latent sites of its trace, by name.
        guides: With bound sites; they cover all latent sites but the enumerated ones.
        networks: Layers by the names of the story's keyword arguments.
        num_samples: Draws S in a step.
        objective: `"elbo"` or `"multi_sample"`.
        dtype: Of the draws.
        baselines: Learned ones by the place of a discrete site's guide; others have leave one out.
        sticking: Whether densities stick the landing; None leaves that to each guide.
        controls: Control variate of each guide; empty where none has one.
    """

    story: Story
    sites: Mapping[str, Site]
    guides: Sequence[Guide]
    networks: Mapping[str, Any]
    num_samples: int | str = 1
    objective: str = "elbo"
    dtype: str = "float32"
    baselines: Mapping[int, LearnedBaseline] = field(default_factory=dict)
    sticking: bool | None = None
    controls: Sequence[ControlVariate | None] = ()

    @functools.cached_property
    def combinations(self) -> Combinations:
        """Of the values of enumerated sites."""
        return Combinations.of(self.sites.values())

    @property
    def num_draws(self) -> int:
        """Evaluations of the story in a step: `num_samples`, two at least where draws are paired, or measure others."""
        if self.num_samples == CUBATURE:
            return num_points(self.guides)
        conjugate = [guide for guide in self.guides if guide.is_conjugate]
        others = [guide for guide in self.guides if not guide.is_conjugate]
        is_elbo = self.objective == "elbo"
        is_measured = not (is_elbo and self.baselines)
        needs_two = any(is_measured if guide.is_discrete else guide.is_local and is_elbo for guide in others)
        number = int(self.num_samples)
        if any(guide.num_points > 1 for guide in conjugate):
            return number + number % 2
        return max(number, 2) if needs_two else number

    def terms(self, data: Any, key: Tensor, temperature: Tensor | float | None = None) -> Terms:
        """The terms of a step.

        Args:
            data: The batch.
            key: Of the step's noise.
            temperature: T of a training step, which refines the rows of `PerRow`; None where no gradient is asked for.
        """
        draws = self.draws(data, key, self.num_draws, is_shared=self.objective == "multi_sample")
        if temperature is not None:
            draws = refined(self, data, draws, temperature)
        if temperature is not None and self._is_doubly_reparameterized:
            draws = self._doubly_reparameterized(draws, self._terms_at(data, draws), temperature)
        terms = self._terms_at(data, draws)
        if temperature is not None and any(guide.is_discrete for guide in self.guides):
            terms = replace(terms, nll=terms.nll + score_terms(self, data, draws, terms, temperature))
        if temperature is not None and self.controls:
            terms = replace(terms, global_kl=controlled(self.controls, self.guides, draws, terms.global_kl))
        return terms

    def _terms_at(self, data: Any, draws: Draws) -> Terms:
        """What draws cost."""
        kl, rows = [], []
        repeated = self.combinations.repeat(data)
        for number in range(self.num_draws):
            draw = draws.one(number)
            visits = self.visit_every(repeated, draw.real, num_rows(data))
            summed = self.summed(visits, draw.real)
            kl.append({visit.name: self._kl(visit, draw, summed) for visit in visits if visit.name in draw.real})
            rows.append({name: kl[-1].get(name, -log_prob) for name, log_prob in summed.log_prob.items()})
        by_site = {name: ops.stack([each[name] for each in rows]) for name in rows[0]}
        nll = sum(cost for name, cost in by_site.items() if name not in kl[0])
        local = {name: by_site[name] for name, site in self._of_kind("local")}
        total = {name: ops.mean(ops.stack([each[name] for each in kl])) for name, site in self._of_kind("global")}
        return Terms(nll, local, total, by_site)

    @property
    def _is_doubly_reparameterized(self) -> bool:
        """Whether guides of local sites have such gradients: not where two evaluations of networks may differ."""
        has_state = any(layer.non_trainable_variables for layer in self.networks.values())
        local = [guide for guide in self.guides if guide.is_local]
        has_gradient = not local or any(not isinstance(guide, PerRow) for guide in local)
        return self.objective == "multi_sample" and self.num_draws > 1 and has_gradient and not has_state

    def _doubly_reparameterized(self, draws: Draws, terms: Terms, temperature: Tensor | float) -> Draws:
        """The draws with the gradients of `bdl.svi.doubly`, of guides of local sites whose density has a score."""
        shares = shares_of(-terms.costs(temperature), temperature)
        real, sticky = dict(draws.real), dict(draws.sticky)
        for place, guide in enumerate(self.guides):
            if guide.is_local and draws.families[place][0].score(draws.noise[place][0]) is not None:
                numbers = ops.concatenate([draws.real[name] for name in guide.sizes], axis=-1)
                sticky[place] = numbers = handing_on(numbers, *shares)
                for name in guide.sizes:
                    start, stop = guide.coordinates(name)
                    real[name] = numbers[..., start:stop]
        return replace(draws, real=real, sticky=sticky)

    def draws(
        self,
        data: Any,
        key: Tensor,
        number: int,
        is_shared: bool = False,
        is_mirrored: bool = True,
        is_global: bool = False,
    ) -> Draws:
        """Draws of all latent sites.

        Args:
            data: The batch.
            key: Of the noise.
            number: How many.
            is_shared: Whether all share one draw of the global sites.
            is_mirrored: Whether they come in pairs, but for discrete sites; otherwise each has noise of its own, and
                there may be many.
            is_global: Whether the global sites alone are drawn.
        """
        rows = None if is_global else num_rows(data)
        draws = Draws({}, {}, {})
        # Globals first, for a local guide may read their draw; of these first what the priors of others depend on.
        order = sorted(enumerate(self.guides), key=lambda pair: (pair[1].is_local, pair[1].follows_prior))
        for place, guide in order:
            if guide.is_local and is_global:
                continue
            if guide.is_conjugate:
                family, real = placed(self, guide, data, number, fold_in(key, place), is_drawn=not is_mirrored)
                draws.families[place], draws.noise[place] = [family] * number, real
                draws.real[guide.site] = real
                continue
            noise = self._noise(guide, rows, fold_in(key, place), number, is_shared, is_mirrored)
            given = ops.concatenate([draws.real[name] for name in guide.given], axis=-1) if guide.given else None
            if guide.follows_prior:
                families, real = follow(self, guide, data, draws.real, noise, is_unrolled=is_mirrored)
            elif given is None or is_shared:  # one distribution for all draws
                families = [guide.distribution(data, None if given is None else given[0])] * number
                real = families[0].draw(noise)
            else:
                families = [guide.distribution(data, given[each]) for each in range(number)]
                real = ops.stack([family.draw(noise[each]) for each, family in enumerate(families)])
            families = told_to_stick(families, self.sticking)
            draws.families[place], draws.noise[place] = families, noise
            if is_mirrored and self.controls:
                real = taught(self.controls[place], draws, place, real)
            for name in guide.sizes:
                start, stop = guide.coordinates(name)
                draws.real[name] = real[..., start:stop]
        return draws

    def visit(
        self,
        data: Any,
        real: Mapping[str, Tensor],
        until: str | None = None,
        combination: Tensor | None = None,
        rows: Tensor | int | None = None,
    ) -> list[Visit]:
        """The sites of one run of the story at values on the real line.

        Args:
            data: The batch.
            real: By site, `(numbers,)` or `(rows, numbers)`.
            until: Name of the site at which the run ends; None runs to the end.
            combination: Of the enumerated sites' values, for each row `(rows,)`; None takes the first one.
            rows: Number of rows; None counts those of the data.

        Raises:
            ValueError: if the sites are not those of the trace.
        """
        rows = num_rows(data) if rows is None else rows
        combination = self.combinations.first(rows) if combination is None else combination

        def answer(variable: Variable) -> Tensor:
            if isinstance(variable, Observed):
                return variable.value
            site = self._site(variable.name)
            if site.kind == "enumerated":
                return self.combinations.value(variable, combination)
            return value_of(variable, site, real[site.name])

        with supports.unchecked():
            visits = run(self.story, data, answer, self.networks, rows, until)
        missing = set(self.sites) - {visit.name for visit in visits}
        if missing and until is None:
            raise ValueError(f"`story` must yield the same sites on each batch; it has left out {sorted(missing)}.")
        return visits

    def visit_every(self, repeated: Any, real: Mapping[str, Tensor], rows: Tensor | int) -> list[Visit]:
        """The sites of one run on all combinations of the enumerated sites' values.

        Args:
            repeated: The batch, as `combinations.repeat` makes it.
            real: By site, `(numbers,)` or `(rows, numbers)`, not repeated.
            rows: Of the batch, before it was repeated.
        """
        combinations = self.combinations
        if not combinations.sites:
            return self.visit(repeated, real, rows=rows)
        real = {
            name: combinations.repeat(each) if self.sites[name].kind == "local" else each for name, each in real.items()
        }
        return self.visit(repeated, real, None, combinations.every(rows), rows * combinations.number)

    def summed(self, visits: Sequence[Visit], real: Mapping[str, Tensor]) -> Summed:
        """Log densities on the real line, enumerated sites summed out.

        Args:
            visits: Of `visit_every`. An observed site without a value tells nothing.
            real: By site, `(numbers,)` or `(rows, numbers)`, not repeated.
        """
        kept = [visit for visit in visits if not isinstance(visit.variable, Global) and visit.value is not None]
        return sum_out(self.combinations, {visit.name: (visit.variable, self._log_prob(visit, real)) for visit in kept})

    def log_densities(self, data: Any, real: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log density of each site but the enumerated ones, on the real line, in nats: a scalar, or `(rows,)`.

        Args:
            data: The batch.
            real: By site, `(numbers,)` or `(rows, numbers)`.
        """
        visits = self.visit_every(self.combinations.repeat(data), real, num_rows(data))
        total = {visit.name: self._log_prob(visit, real) for visit in visits if isinstance(visit.variable, Global)}
        return {**total, **self.summed(visits, real).log_prob}

    def log_joint(self, data: Any, real: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Log joint density of the data and of latent numbers on the real line: a scalar, in nats.

        Args:
            data: The batch.
            real: By site, `(numbers,)` or `(rows, numbers)`.
            weights: How often each row counts, `(rows,)`; None counts each once.
        """
        total = ops.zeros((), dtype=self.dtype)
        weights = None if weights is None else ops.cast(weights, self.dtype)
        for name, log_prob in self.log_densities(data, real).items():
            log_prob = ops.cast(log_prob, self.dtype)
            total = total + ops.sum(log_prob if weights is None or self.is_global(name) else weights * log_prob)
        return total

    def is_global(self, name: str) -> bool:
        """Whether a site, observed ones included, is a global one."""
        return name in self.sites and self.sites[name].kind == "global"

    def _log_prob(self, visit: Visit, real: Mapping[str, Tensor]) -> Tensor:
        """Log density of a site on the real line: a scalar, or one number for each of the repeated rows."""
        if visit.name not in real:
            return visit.log_prob()
        numbers, site = real[visit.name], self.sites[visit.name]
        if site.kind == "local":
            numbers = self.combinations.repeat(numbers)
        if is_point(site, numbers):
            return visit.log_prob()
        return visit.log_prob() + support_of_site(visit.variable).log_det(numbers, site.shape)

    def _site(self, name: str) -> Site:
        if name not in self.sites:
            raise ValueError(
                f"`story` must yield the same sites on each batch, {sorted(self.sites)}, not also {name!r}. Yield "
                "each of them always."
            )
        return self.sites[name]

    def _of_kind(self, kind: str) -> list[tuple[str, Site]]:
        return [(name, site) for name, site in self.sites.items() if site.kind == kind]

    def _noise(self, guide: Guide, rows: Any, key: Tensor, number: int, is_shared: bool, is_mirrored: bool) -> Tensor:
        """Standard normal noise of each draw: `(number, noise_size)`, or `(number, rows, noise_size)`."""
        if self.num_samples == CUBATURE and is_mirrored and not guide.is_local:
            return ops.convert_to_tensor(points_of(self.guides, guide), dtype=self.dtype)
        is_shared, is_mirrored = is_shared and not guide.is_local, is_mirrored and not guide.is_discrete
        own = 1 if is_shared else (number + 1) // 2 if is_mirrored else number
        noise = (
            normal((own, rows, guide.noise_size), of_examples(key, 1))
            if guide.is_local
            else normal((own, guide.noise_size), key)
        )
        noise = ops.cast(noise, self.dtype)
        if is_shared:
            return ops.repeat(noise, number, axis=0)
        if not is_mirrored:
            return noise
        pairs = ops.stack([noise, -noise], axis=1)
        return ops.reshape(pairs, (-1, *ops.shape(noise)[1:]))[:number]

    def _kl(self, visit: Visit, draw: Draw, summed: Summed) -> Tensor:
        """Divergence of a site, given the draw of those before it: a scalar, or `(rows,)`."""
        site = self.sites[visit.name]
        place = next(number for number, guide in enumerate(self.guides) if site.name in guide.sizes)
        family: Any
        family, noise = draw.family(place)
        coordinates = self.guides[place].coordinates(site.name)
        if self.guides[place].is_conjugate:
            return family.kl_from(prior_of(visit.variable, self.guides[place], self.dtype))
        if family.is_point:
            return -visit.log_prob()
        is_mixture = site.kind == "local" and (self.objective == "multi_sample" or site.name in summed.depends)
        block = None if is_mixture else family.block(noise, *coordinates)
        prior = None if block is None else supports.as_normal(visit.variable.distribution)
        if block is not None and prior is not None:
            loc, scale = (self._flat(values, visit, site) for values in prior)
            return block.kl_from(loc, scale)
        start, stop = coordinates
        log_q = ops.sum(draw.log_density(place)[..., start:stop], axis=-1)
        if site.is_discrete and self.objective == "elbo":  # its gradient is zero on average
            log_q = ops.stop_gradient(log_q)
        is_global = isinstance(visit.variable, Global)
        return log_q - (self._log_prob(visit, draw.real) if is_global else summed.log_prob[site.name])

    def _flat(self, values: Tensor, visit: Visit, site: Site) -> Tensor:
        """Parameters of a prior in the layout of the real line: `(size,)` or `(rows, size)`."""
        values = ops.broadcast_to(ops.convert_to_tensor(values, dtype=self.dtype), ops.shape(visit.value))
        if isinstance(visit.variable, Global):
            return ops.reshape(values, (site.size,))
        return self.combinations.apart(ops.reshape(values, (-1, site.size)))[:, 0]
