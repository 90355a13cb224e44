"""`SVI`: a Keras model that fits a story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_num_samples, check_objective
from bdl.elbo import KLSchedule, elbo_parts, kl_divergence
from bdl.keras_internals import num_replicas
from bdl.random import Tensor, draw_key, fold_in
from bdl.svi.estimators import Estimator
from bdl.svi.files import Saved
from bdl.svi.guides import Guide
from bdl.svi.guides.selection import assign_guides, check_guide
from bdl.svi.results import Results
from bdl.svi.rows import EndlessRows, as_data, as_tensors
from bdl.svi.start import check_start, find_start
from bdl.svi.story import Site, Story, Trace, num_rows, trace
from bdl.training import data as training_data
from bdl.training.averaging import TailAverage
from bdl.training.figures import part_trackers, update_parts
from bdl.training.progress import Progress, begin_decay
from bdl.training.steps import build_optimizer


@keras.saving.register_keras_serializable(package="bdl")
class SVI(Results, Saved, keras.Model):
    """Stochastic variational inference of a story: any probabilistic model, fitted as a Keras model is.

    The objective is the ELBO of `bdl.elbo`: observed sites give the NLL, the divergence of global sites is divided by
    the number of rows N, local sites pay their own. Logs hold `loss` (tempered, per row), `nll` (per row), `kl`
    (total), `elbo` (per row, at T = 1), `temperature`, and `kl_<site>` of each latent site (total, local ones over all
    N rows), all in nats.

    Args:
        story: Generator function of the data and, by name, of the networks; it yields `Global`, `Local` and `Observed`
            sites. To load a file without giving it again, register it: `keras.saving.register_keras_serializable()`.
        guide: Variational family: `"mean_field"`, `"full_rank"`, `"delta"` or a `bdl.svi.guides.Guide` for all sites
            together, or a dict of these by the name of a site, or by a tuple of names, for sites that are guided
            jointly. Global sites that a dict leaves out have a mean-field guide; local sites need `Amortized`.
        networks: Layers by the names of the story's keyword arguments; they are trained and saved with the model, and
            where they have posteriors of their own, their KL joins the globals'.
        num_examples: Number of rows N; None infers it in `fit`, where the data tell it.
        start: Where the first fit begins: `"prior"`, the median of the prior; `"map"`, the mode of the posterior
            density on the real line; `"laplace"`, the mode, in coordinates that the curvature there makes round; or a
            dict of values by site.
        objective: `"elbo"`, or `"multi_sample"`: the importance weighted bound, with one draw of the globals shared by
            `num_samples` draws of the locals.
        num_samples: Draws in a step, in mirrored pairs; a story with local sites has one pair at least.
        averaging: Whether `fit` ends with the mean of the variables over the second half of its steps.
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
        start: str | Mapping[str, Any] = "prior",
        objective: str = "elbo",
        num_samples: int = 1,
        averaging: bool = True,
        kl_weight: float | KLSchedule = 1.0,
        dtype: str = "float32",
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"`dtype` must be 'float32' or 'float64', not {dtype!r}.")
        if not callable(story):
            raise ValueError(f"`story` must be a generator function of the data, not {story!r}.")
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.story = story
        self.networks = dict(networks or {})
        wrong = [key for key, layer in self.networks.items() if not isinstance(layer, keras.Layer)]
        if wrong:
            raise ValueError(f"`networks` must be Keras layers by name, which {wrong} are not.")
        self.requested_guide = check_guide(guide)
        self.start = check_start(start)
        self.objective = check_objective(objective, 0.0)
        self.num_samples = check_num_samples(num_samples, "draws in a training step")
        self.averaging = bool(averaging)
        self.kl_weight = kl_weight if isinstance(kl_weight, KLSchedule) else float(kl_weight)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.seed = int(ops.convert_to_numpy(self.seed_generator.state)[0]) if seed is None else seed
        self.progress = Progress(self, num_examples, self.kl_weight)
        self.sites: tuple[Site, ...] = ()
        self.guides: list[Guide] = []
        self.average: TailAverage | None = None
        self._part_trackers = part_trackers()
        self._site_trackers: list[keras.metrics.Mean] = []

    @property
    def num_examples(self) -> int | None:
        """Number of rows N, or None before it is known."""
        return self.progress.num_examples

    @property
    def temperature(self) -> float | None:
        """T of the next training step, or None where its schedule does not know its length yet."""
        return self.progress.temperature

    @property
    def latent(self) -> dict[str, Site]:
        """The latent sites by name, once the story has been traced."""
        return {site.name: site for site in self.sites if site.kind != "observed"}

    @property
    def estimator(self) -> Estimator:  # type: ignore[override]
        """What draws from the guides and runs the story."""
        return Estimator(
            self.story, self.latent, self.guides, self.networks, self.num_samples, self.objective, self.compute_dtype
        )

    def guide_of(self, site: str) -> Guide:
        """The guide of a latent site; `guide_of(site).trainable = False` freezes it.

        Raises:
            ValueError: if there is no such site yet.
        """
        for guide in self.guides:
            if site in guide.sizes:
                return guide
        raise ValueError(f"`site` must be one of the latent sites {list(self.latent)}, not {site!r}.")

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the story is traced on data, by `fit` or `trace_on`."""

    def trace_on(self, data: Any) -> Trace:
        """Traces the story on a batch; the first time guides and networks get their variables.

        Args:
            data: A batch of data.

        Raises:
            ValueError: as `bdl.svi.story.trace` and `assign_guides` do, or if the sites are not those traced before.
        """
        given = self.start if isinstance(self.start, Mapping) else None
        key = fold_in(draw_key(0), 0)
        found = trace(self.story, as_tensors(data, self.compute_dtype), key, self.networks, given, self.compute_dtype)
        if self.sites:
            self.check_sites(found.sites)
        else:
            self.bind_guides(found.sites, found.data)
        self.example = found.data
        return found

    def bind_guides(self, sites: tuple[Site, ...], data: Any = None) -> None:
        """Gives guides their sites and all the model its variables; those of a file come without data."""
        self.sites = tuple(sites)
        latent = self.latent
        assignment = assign_guides(self.requested_guide, latent)
        self.guides = [guide for _, guide in assignment]
        for names, guide in assignment:
            if not guide.sizes:
                given = sum(latent[name].size for name in guide.given)
                guide.dtype_policy = self.dtype_policy
                guide.bind({name: latent[name].size for name in names}, data, given)
        if self.averaging:
            layers = [*self.guides, *self.networks.values()]
            weights = [weight for layer in layers for weight in layer.weights if "float" in weight.dtype]
            self.average = TailAverage(self, weights)
        self._site_trackers = [keras.metrics.Mean(name=f"kl_{name}", dtype="float32") for name in latent]
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> dict[str, Any]:
        """The terms of the objective for one step's draws; see `bdl.svi.estimators.Terms`."""
        data = as_tensors(inputs, self.compute_dtype)
        terms = self.estimator.terms(data, draw_key(self.seed_generator))
        return {"nll": terms.nll, "local": terms.local_kl, "global": terms.global_kl}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The objective per row, in nats; outside training the negative ELBO, at T = 1."""
        local, total = y_pred["local"], y_pred["global"]
        networks_kl = ops.cast(kl_divergence(self), self.compute_dtype)
        parts = elbo_parts(
            y_pred["nll"],
            sum(total.values(), networks_kl),
            self.progress.size,
            self.progress.current_temperature if training else 1.0,
            sum(local.values()) if local else None,
            sample_weight,
            objective=self.objective if training else "elbo",
        )
        if training:
            self.progress.advance()
            if self.average is not None:
                self.average.update()
        self._track(parts, x, local, total, sample_weight)
        return parts.loss / num_replicas()

    def _track(self, parts: Any, x: Any, local: Any, total: Any, sample_weight: Any) -> None:
        """Adds the figures of a batch to the logs."""
        rows = num_rows(x)
        update_parts(self._part_trackers, parts, rows)
        size = ops.cast(self.progress.size, self.compute_dtype)
        for tracker in self._site_trackers:
            name = tracker.name.removeprefix("kl_")
            if name in local:
                weights = 1.0 if sample_weight is None else ops.cast(sample_weight, self.compute_dtype)
                tracker.update_state(ops.mean(local[name] * weights) * size, sample_weight=rows)
            else:
                tracker.update_state(total[name], sample_weight=rows)

    def compile(self, optimizer: Any = "adam", loss: None = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`, without a loss: the story says what the loss is.

        Raises:
            ValueError: if a loss is given.
        """
        if loss is not None:
            raise ValueError(f"`loss` must be None, not {loss!r}: SVI trains on the ELBO of its story.")
        super().compile(optimizer=optimizer, loss=None, **kwargs)

    def fit(
        self,
        x: Any = None,
        y: None = None,
        batch_size: int | Literal["all"] | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *,
        steps: int | None = None,
        initial_epoch: int = 0,
        validation_data: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`, on the data of the story, which hold what was observed: there are no labels.

        Args:
            x: Arrays with one row for each example, in a dict for a story that reads several; a `tf.data.Dataset`, a
                `PyDataset` or another data set of such batches.
            y: None.
            batch_size: Rows in a step; `"all"` takes the whole data in each.
            epochs: Passes over the data; with `steps` the number of reports, among which they are divided.
            verbose: As in Keras.
            callbacks: As in Keras.
            steps: Number of training steps, in place of passes over the data.
            initial_epoch: As in Keras.
            validation_data: Data of the same kind as `x`.
            **kwargs: As in Keras, `sample_weight` among them: how often a row counts as observed. N is the number of
                rows whatever their weights, so that rows that occur several times may be given once, with their counts.

        Returns:
            Keras' `History`.

        Raises:
            ValueError: if N is not known and cannot be inferred, data are not sound, a site is not (see `trace_on`), or
                `batch_size` and `steps` do not go with the data.
        """
        if y is not None:
            raise ValueError("`y` must be None: a story reads all its data from `x`. Pass fit({'x': ..., 'y': ...}).")
        x = as_data(x, self.compute_dtype)
        width = self._all_rows(x) if batch_size == "all" else batch_size
        size = training_data.measure(x, width)
        self.progress.set_num_examples(size.num_examples, x)
        self._begin(x, width)
        if validation_data is not None:
            validation_data = as_data(validation_data, self.compute_dtype, "validation_data")
        asked = self._steps_per_epoch(steps, epochs) or kwargs.pop("steps_per_epoch", None)
        per_epoch = asked or size.steps_per_epoch
        kwargs["steps_per_epoch"] = asked if training_data.is_data_set(x) else per_epoch
        x, kwargs = self._batches(x, width, steps, kwargs)
        self.progress.begin_fit(per_epoch, epochs - initial_epoch)
        if begin_decay(self.optimizer, per_epoch, epochs - initial_epoch):
            self.make_train_function(force=True)
        if self.average is not None:
            self.average.begin(None if per_epoch is None else per_epoch * (epochs - initial_epoch))
        build_optimizer(self)
        settings = {**kwargs, "initial_epoch": initial_epoch, "validation_data": validation_data}
        history = super().fit(x, None, None, epochs, verbose, callbacks, **settings)
        if self.average is not None:
            self.average.put_in_place()
        self.progress.end_fit(was_stopped=bool(self.stop_training))
        return history

    def evaluate(self, x: Any = None, y: None = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: the ELBO and its parts at T = 1."""
        self.progress.require_num_examples()
        x = as_data(x, self.compute_dtype)
        if not self.built:
            self._begin(x, batch_size)
        return super().evaluate(x, None, batch_size, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; needs `num_examples`.

        Raises:
            ValueError: if it is not known.
        """
        self.progress.require_num_examples()
        self.progress.require_length("train_on_batch")
        if not self.built:
            self._begin(as_data(x, self.compute_dtype), None)
        return super().train_on_batch(x, *args, **kwargs)

    def _all_rows(self, x: Any) -> int:
        if training_data.is_data_set(x):
            raise ValueError(f"`batch_size` must be a number for {type(x).__name__}, not 'all', which is for arrays.")
        return int(num_rows(x))

    def _steps_per_epoch(self, steps: int | None, epochs: int) -> int | None:
        if steps is None:
            return None
        if steps <= 0 or steps % epochs:
            raise ValueError(f"`steps` must be a positive multiple of epochs={epochs}, not {steps!r}.")
        return steps // epochs

    def _batches(self, x: Any, batch_size: int | None, steps: int | None, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The batches of a fit and its other settings: arrays are cut and shuffled here, from the model's seed."""
        kwargs = {**kwargs, "shuffle": False}  # Keras warns otherwise of what shuffles itself
        if training_data.is_data_set(x):
            return (x.repeat() if steps and training_data.is_dataset(x) else x), kwargs
        settings = {name: value for name, value in kwargs.items() if name != "sample_weight"}
        weights = kwargs.get("sample_weight")
        if weights is not None:
            weights = as_data(weights, self.compute_dtype, "sample_weight")
            training_data.check_lengths({"x": x, "sample_weight": weights})
        size = batch_size or training_data.DEFAULT_BATCH_SIZE
        return EndlessRows(x, size, self.seed, lambda: self.progress.step, weights).for_fit(), settings

    def _begin(self, x: Any, batch_size: int | None) -> None:
        """Traces the story on a first batch; before the first fit, moves the guides to where it begins."""
        is_first = not self.built
        batch = self._first_batch(x, batch_size)
        if batch is None:
            if is_first:
                raise ValueError(
                    f"The story must be traced before it is fitted to {type(x).__name__}, which can be read once only. "
                    "Call model.trace_on(batch) first."
                )
            return
        found = self.trace_on(batch)
        if not is_first:
            return
        if self.start in ("map", "laplace") and training_data.is_data_set(x):
            raise ValueError(f"`start` must be 'prior' or a dict of values, not {self.start!r}, unless `x` is arrays.")
        whole = batch if training_data.is_data_set(x) else as_tensors(x, self.compute_dtype)
        start = find_start(self.start, found, self.estimator, whole, fold_in(draw_key(0), 1))
        for guide in self.guides:
            if not guide.is_local:
                guide.start_at(*start.of(guide.sizes))

    def _first_batch(self, x: Any, batch_size: int | None) -> Any:
        if training_data.is_data_set(x):
            return training_data.first_inputs(x)
        rows = batch_size or training_data.DEFAULT_BATCH_SIZE
        return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[:rows], x)
