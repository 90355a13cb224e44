"""`SVI`: a Keras model that fits a story."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_objective, check_positive_integer
from bdl.elbo import ELBOParts, KLSchedule, batch_mean, elbo_parts, kl_divergence, share_of_loss
from bdl.keras_internals import flatten_layers, rows_per_replica
from bdl.protocols import HasLocalLatents
from bdl.random import Tensor, draw_key, fold_in
from bdl.svi.baseline import check_baseline
from bdl.svi.chains import descended, together
from bdl.svi.comparison import Compared
from bdl.svi.control import check_control_variate
from bdl.svi.cubature import check_draws
from bdl.svi.derivatives import Kept
from bdl.svi.estimators import Estimator
from bdl.svi.files import Saved
from bdl.svi.fitting import Fitting
from bdl.svi.guides import Guide
from bdl.svi.guides.selection import check_guide, requested
from bdl.svi.guides.sticking import check_sticking
from bdl.svi.rows import as_tensors
from bdl.svi.start import check_start
from bdl.svi.story import Story, num_rows
from bdl.svi.watching import Watched
from bdl.training.figures import part_trackers, update_parts
from bdl.training.progress import Progress


@keras.saving.register_keras_serializable(package="bdl")
class SVI(Compared, Saved, Watched, Fitting):
    """Stochastic variational inference of a story: any probabilistic model, fitted as a Keras model is.

    The objective is the ELBO of `bdl.elbo`: observed sites give the NLL, the divergence of global sites is divided by
    the number of rows N, local sites pay their own. Logs hold `loss` (tempered, per row), `nll` (per row), `kl`
    (total), `elbo` (per row, at T = 1), `temperature`, and `kl_<site>` of each latent site (total, local ones over all
    N rows), all in nats; of several chains their mean, but that of `chain` in validation.

    Args:
        story: Generator function of the data and, by name, of the networks; it yields `Global`, `Local` and `Observed`
            sites. To load a file without giving it again, register it: `keras.saving.register_keras_serializable()`.
        guide: Variational family: `"mean_field"`, `"full_rank"`, `"low_rank"`, `"flow"`, `"structured"`, `"delta"` or a
            `bdl.svi.guides.Guide` for all sites together, or a dict of these by the name of a site, or by a tuple of
            names, for sites that are guided jointly. Global sites that a dict leaves out have a mean-field guide; local
            sites need `Amortized`, `Smoothed` or `PerRow`, but for discrete ones of few values, which are summed out
            unless the dict names them (`bdl.svi.enumeration`, `bdl.svi.score`).
        networks: Layers by the names of the story's keyword arguments; they are trained and saved with the model, and
            where they have posteriors of their own, their KL joins the globals'.
        num_examples: Number of rows N; None infers it in `fit`, where the data tell it.
        start: Where the first fit begins: `"prior"`, the median of the prior; `"map"`, the mode of the posterior
            density on the real line; `"laplace"`, the mode, in coordinates that the curvature there makes round; a
            dict of values by site; or `("laplace", values)`, or `("map", values)`, which look for the mode from these
            values on, where there are several modes.
        objective: `"elbo"`, or `"multi_sample"`: the importance weighted bound, with one draw of the globals shared by
            `num_samples` draws of the locals, and doubly reparameterized gradients of their guides (`bdl.svi.doubly`).
        num_samples: Draws in a step, in mirrored pairs; a story with local sites has one pair at least. Those of
            discrete sites are not mirrored, and do with one where their baseline is learned. Or `"cubature"`: global
            sites of few numbers d have the 2 d points `+-sqrt(d)` along each axis of the noise, without chance, by
            which expectations of cubics are exact.
        baseline: By what draws of discrete sites are measured under the ELBO (`bdl.svi.score`): `"leave_one_out"`, the
            mean cost of the row's other draws; `"learned"`, what a linear function of the recognition network's
            features expects; or a Keras layer, a network that makes features of its own of what that reads
            (`bdl.svi.baseline`). The last two train with the model, and allow one draw a step.
        num_chains: Number of fits from starts of their own that are made side by side; `agreement` tells whether they
            came to the same, and results are of the one with the highest ELBO (`chain`). The first begins at `start`,
            and is the fit of a model with one chain. The others begin around it, within 2 in each number on the real
            line, and look from there for the mode where that is asked for; their guides are copies with networks of
            their own, initialised anew. A step costs as much as of so many fits. An optimizer that treats each number
            by itself fits them independently; `global_clipnorm` couples them.
        averaging: Whether `fit` ends with the mean of the variables over the second half of its steps.
        control_variate: `"quadratic"` learns, for each mean-field or full-rank guide of global sites, which part of the
            gradient is linear in the noise, and takes it off (`bdl.svi.control`); None does not. It pays for mean-field
            guides of correlated posteriors; full-rank ones, which stick the landing, are mostly quieter without. It
            keeps the square of the guide's size in numbers.
        sticking: Whether densities of guides stick the landing (`bdl.svi.guides.gaussian`): True or False for all, None
            for the default of each guide. Mean-field guides and recognition networks do not by default; full-rank,
            low-rank, structured ones and flows do, which come close to the posterior. Hierarchical ones always do.
        kl_weight: Temperature T, a number (1.0 is Bayes) or a `bdl.elbo.KLSchedule`.
        dtype: `"float32"` or `"float64"`, of guides, draws and data.
        seed: Integer; the same seed gives the same fit. None takes one at random.
        name: Name of the model.
        **kwargs: Other arguments of `keras.Model`.

    Raises:
        ValueError: if an argument is of the wrong kind.

    Sources: Hoffman et al. 2013, "Stochastic variational inference"; Kucukelbir et al. 2017, "Automatic differentiation
    variational inference".

    Example:
    >>> import tensorflow_probability as tfp
    >>> from bdl.svi import SVI, Global, Observed
    >>> def story(data):
    ...     mean = yield Global("mean", tfp.distributions.Normal(0.0, 3.0))
    ...     yield Observed("y", tfp.distributions.Normal(mean, 1.0), data["y"])
    >>> model = SVI(story, seed=0)
    >>> model.compile(keras.optimizers.Adam(0.1))
    >>> history = model.fit({"y": np.full(20, 2.0)}, batch_size="all", steps=100, verbose=0)
    >>> model.posterior(num_samples=500)["mean"].shape
    (500,)
    """

    def __init__(
        self,
        story: Story,
        guide: str | Guide | Mapping[Any, Any] = "mean_field",
        networks: Mapping[str, keras.Layer] | None = None,
        num_examples: int | None = None,
        start: str | Mapping[str, Any] | tuple[str, Mapping[str, Any]] = "prior",
        objective: str = "elbo",
        num_samples: int | str = 1,
        baseline: str | keras.Layer = "leave_one_out",
        num_chains: int = 1,
        averaging: bool = True,
        control_variate: str | None = None,
        sticking: bool | None = None,
        kl_weight: float | KLSchedule = 1.0,
        dtype: str = "float32",
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be 'float32' or 'float64', not {dtype!r}.")
        if keras.backend.standardize_dtype(ops.convert_to_tensor(np.zeros((), dtype)).dtype) != dtype:
            raise ValueError(
                f"`dtype` must be 'float32' while {keras.backend.backend()} has no 64 bits, not {dtype!r}. Call "
                "jax.config.update('jax_enable_x64', True) first."
            )
        if not callable(story):
            raise ValueError(f"`story` must be a generator function of the data, not {story!r}.")
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.story = story
        self.networks = dict(networks or {})
        wrong = [key for key, layer in self.networks.items() if not isinstance(layer, keras.Layer)]
        if wrong:
            raise ValueError(f"`networks` must be Keras layers by name, which {wrong} are not.")
        self.num_chains = check_positive_integer(num_chains, "num_chains")
        if self.networks and self.num_chains > 1:
            raise ValueError(
                f"`num_chains` must be 1 with `networks` in the story, not {self.num_chains}: chains would share them, "
                "and would not be independent. Fit a model for each seed instead."
            )
        self.requested_guide = check_guide(guide)
        guides = [each for _, each in requested(self.requested_guide)]
        _refuse_latents([*self.networks.values(), *guides])
        self.start = check_start(start)
        self.objective = check_objective(objective, 0.0)
        self.num_samples = check_draws(num_samples, self.objective)
        self.baseline = check_baseline(baseline, guides, list(self.networks.values()), self.objective)
        self.averaging = bool(averaging)
        self.control_variate = check_control_variate(control_variate, self.num_samples)
        self.sticking = check_sticking(sticking)
        self.kl_weight = kl_weight if isinstance(kl_weight, KLSchedule) else float(kl_weight)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.seed = int(ops.convert_to_numpy(self.seed_generator.state)[0]) if seed is None else seed
        self.progress = Progress(self, num_examples, self.kl_weight)
        self._part_trackers = part_trackers()
        self.kept = Kept()

    @property
    def num_examples(self) -> int | None:
        """Number of rows N, or None before it is known; set it before a further fit on a stream of other rows."""
        return self.progress.num_examples

    @num_examples.setter
    def num_examples(self, value: int) -> None:
        self.progress.give_num_examples(value)

    @property
    def temperature(self) -> float | None:
        """T of the next training step, or None where its schedule does not know its length yet."""
        return self.progress.temperature

    @property
    def estimator(self) -> Estimator:  # type: ignore[override]
        """What draws from the guides of `chain` and runs the story."""
        return self.estimator_of(self.chain)

    def estimator_of(self, chain: int) -> Estimator:
        """The same of a chain.

        Raises:
            ValueError: if there is no such chain.
        """
        guides, settings = self.guides_of(chain), (self.num_samples, self.objective, self.compute_dtype)
        controls = self.controls[chain * len(guides) : (chain + 1) * len(guides)]
        return Estimator(
            self.story,
            self.latent,
            guides,
            self.networks,
            *settings,
            baselines=self.baselines_of(chain),
            sticking=self.sticking,
            controls=controls,
        )

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the story is traced on data, by `fit` or `trace_on`."""

    def call(self, inputs: Any, training: bool = False) -> list[dict[str, Any]]:
        """The terms of the objective of each chain for one step's draws; see `bdl.svi.estimators.Terms`."""
        data = as_tensors(inputs, self.compute_dtype)
        temperature = self.progress.current_temperature if training else None
        key = draw_key(self.seed_generator)
        found = []
        for chain in range(self.num_chains):
            own = fold_in(key, len(self.guides) + chain) if chain else key  # the first is the fit of one chain
            terms = self.estimator_of(chain).terms(data, own, temperature)
            found.append({"nll": terms.nll, "local": terms.local_kl, "global": terms.global_kl})
        return found

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The objective per row, in nats; outside training the negative ELBO, at T = 1.

        Of several chains the mean, with the gradient of the sum; outside training it is that of `chain`.
        """
        every = [self._parts(chain, terms, sample_weight, training) for chain, terms in enumerate(y_pred)]
        losses = [parts.loss for parts in every]
        if training:
            self.progress.advance()
            if self.average is not None:
                self.average.update()
            if self.chain_losses is not None:
                self.chain_losses.update(losses)
        chosen = None if training or self.chain_losses is None else self.chain_losses.choice()
        self._track(every, x, y_pred, sample_weight, chosen)
        return share_of_loss(descended(losses) if training else together(losses, chosen))

    def _parts(self, chain: int, terms: dict[str, Any], sample_weight: Any, training: bool) -> ELBOParts:
        """The parts of the objective of a chain."""
        layers = [self] if self.num_chains == 1 else self.guides_of(chain)
        networks_kl = sum(kl_divergence(layer) for layer in layers)
        return elbo_parts(
            terms["nll"],
            sum(terms["global"].values(), ops.cast(networks_kl, self.compute_dtype)),
            self.progress.size,
            self.progress.current_temperature if training else 1.0,
            sum(terms["local"].values()) if terms["local"] else None,
            sample_weight,
            objective=self.objective if training else "elbo",
        )

    def _track(
        self, every: list[ELBOParts], x: Any, y_pred: list[dict[str, Any]], sample_weight: Any, chosen: Any
    ) -> None:
        """Adds the figures of a batch to the logs: means over the chains, or those of one."""
        rows = rows_per_replica(num_rows(x))
        names = [field.name for field in dataclasses.fields(ELBOParts)]
        parts = {name: together([getattr(each, name) for each in every], chosen) for name in names}
        update_parts(self._part_trackers, ELBOParts(**parts), rows)
        size = ops.cast(self.progress.size, self.compute_dtype)
        for tracker in self._site_trackers:
            name = tracker.name.removeprefix("kl_")
            kl = [
                batch_mean(terms["local"][name], sample_weight) * size
                if name in terms["local"]
                else terms["global"][name]
                for terms in y_pred
            ]
            tracker.update_state(together(kl, chosen), sample_weight=rows)


def _refuse_latents(layers: Sequence[keras.Layer]) -> None:
    """Refuses layers with latent variables of single rows, whose KL would not be counted."""
    found = [layer.name for each in layers for layer in flatten_layers(each) if isinstance(layer, HasLocalLatents)]
    if found:
        raise ValueError(
            f"`networks` and the networks of guides must have no latent variables of single rows, as {found} have: "
            "their KL would not be counted. Tell them in the story, as Local sites."
        )
