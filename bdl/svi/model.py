"""`SVI`: a Keras model that fits a story."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_num_samples, check_objective, check_positive_integer
from bdl.elbo import ELBOParts, KLSchedule, elbo_parts, kl_divergence
from bdl.keras_internals import flatten_layers, num_replicas
from bdl.protocols import HasLocalLatents
from bdl.random import Tensor, draw_key, fold_in
from bdl.svi.beginning import Beginning
from bdl.svi.chains import descended, together
from bdl.svi.comparison import Compared
from bdl.svi.derivatives import Kept
from bdl.svi.estimators import Estimator
from bdl.svi.files import Saved
from bdl.svi.guides import Guide, PerRow
from bdl.svi.guides.selection import check_guide
from bdl.svi.rows import (
    BeginRows,
    EndlessRows,
    all_rows,
    as_tensors,
    as_validation,
    as_weights,
    refuse_arguments_of_labels,
    repeated,
    steps_per_epoch,
    with_callback,
)
from bdl.svi.start import check_start
from bdl.svi.story import Story, num_rows
from bdl.training import data as training_data
from bdl.training.figures import part_trackers, update_parts
from bdl.training.progress import Progress, begin_decay
from bdl.training.resident import FitsOnDevice, Resident
from bdl.training.steps import build_optimizer


@keras.saving.register_keras_serializable(package="bdl")
class SVI(Compared, Saved, Beginning, FitsOnDevice, keras.Model):
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
            sites need `Amortized` or `PerRow`, but for discrete ones of few values, which are summed out unless the
            dict names them (`bdl.svi.enumeration`, `bdl.svi.score`).
        networks: Layers by the names of the story's keyword arguments; they are trained and saved with the model, and
            where they have posteriors of their own, their KL joins the globals'.
        num_examples: Number of rows N; None infers it in `fit`, where the data tell it.
        start: Where the first fit begins: `"prior"`, the median of the prior; `"map"`, the mode of the posterior
            density on the real line; `"laplace"`, the mode, in coordinates that the curvature there makes round; or a
            dict of values by site.
        objective: `"elbo"`, or `"multi_sample"`: the importance weighted bound, with one draw of the globals shared by
            `num_samples` draws of the locals, and doubly reparameterized gradients of their guides (`bdl.svi.doubly`).
        num_samples: Draws in a step, in mirrored pairs; a story with local sites has one pair at least, and those
            of discrete sites are not mirrored.
        num_chains: Number of fits from starts of their own that are made side by side; `agreement` tells whether they
            came to the same, and results are of the one with the highest ELBO (`chain`). The first begins at `start`,
            and is the fit of a model with one chain. The others begin around it, within 2 in each number on the real
            line, and look from there for the mode where that is asked for; their guides are copies with networks of
            their own, initialised anew. A step costs as much as of so many fits. An optimizer that treats each number
            by itself fits them independently; `global_clipnorm` couples them.
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

    prefers_xla = True

    def __init__(
        self,
        story: Story,
        guide: str | Guide | Mapping[Any, Any] = "mean_field",
        networks: Mapping[str, keras.Layer] | None = None,
        num_examples: int | None = None,
        start: str | Mapping[str, Any] = "prior",
        objective: str = "elbo",
        num_samples: int = 1,
        num_chains: int = 1,
        averaging: bool = True,
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
        guides = self.requested_guide.values() if isinstance(self.requested_guide, Mapping) else [self.requested_guide]
        _refuse_latents([*self.networks.values(), *guides])
        self.start = check_start(start)
        self.objective = check_objective(objective, 0.0)
        self.num_samples = check_num_samples(num_samples, "draws in a training step")
        self.averaging = bool(averaging)
        self.kl_weight = kl_weight if isinstance(kl_weight, KLSchedule) else float(kl_weight)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.seed = int(ops.convert_to_numpy(self.seed_generator.state)[0]) if seed is None else seed
        self.progress = Progress(self, num_examples, self.kl_weight)
        self._part_trackers = part_trackers()
        self.is_fitting = False
        self.kept = Kept()
        self._trained: tuple[list[str], list[int]] | None = None

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
        return Estimator(self.story, self.latent, guides, self.networks, *settings)

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
        return (descended(losses) if training else together(losses, chosen)) / num_replicas()

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
        rows = num_rows(x)
        names = [field.name for field in dataclasses.fields(ELBOParts)]
        parts = {name: together([getattr(each, name) for each in every], chosen) for name in names}
        update_parts(self._part_trackers, ELBOParts(**parts), rows)
        size = ops.cast(self.progress.size, self.compute_dtype)
        weights = 1.0 if sample_weight is None else ops.cast(sample_weight, self.compute_dtype)
        for tracker in self._site_trackers:
            name = tracker.name.removeprefix("kl_")
            kl = [
                ops.mean(terms["local"][name] * weights) * size if name in terms["local"] else terms["global"][name]
                for terms in y_pred
            ]
            tracker.update_state(together(kl, chosen), sample_weight=rows)

    def compile(self, optimizer: Any = "adam", loss: None = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`, without a loss: the story says what the loss is.

        With `steps_per_execution=50`, for one, 50 steps are one call, in which arrays are read where the device keeps
        them. On TensorFlow such calls are compiled by XLA unless `jit_compile=False`.

        Raises:
            ValueError: if a loss is given, or `steps_per_execution` is no positive integer.
        """
        if loss is not None:
            raise ValueError(f"`loss` must be None, not {loss!r}: SVI trains on the ELBO of its story.")
        self._trained = None
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

        A further fit goes on from where the last one ended, with its own data and their N: it does not remember earlier
        rows. To keep the globals as they are, freeze them and compile again: `guide_of(site).trainable = False`.
        Validation sees the variables as they are at the end of an epoch; their mean takes their place after the last.

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
        refuse_arguments_of_labels(kwargs)
        x = self.checked_data(x, is_read=False)
        width = all_rows(x) if batch_size == "all" else batch_size
        size = training_data.measure(x, width)
        self.progress.set_num_examples(size.num_examples, x)
        has_rows = not training_data.is_data_set(x)
        self.begin(x, width, as_weights(kwargs.get("sample_weight"), x, self.compute_dtype) if has_rows else None)
        if validation_data is not None:
            validation_data = as_validation(self.checked_data(validation_data, "validation_data", is_read=False))
        asked = steps_per_epoch(steps, epochs) or kwargs.pop("steps_per_epoch", None)
        per_epoch = asked or size.steps_per_epoch
        kwargs["steps_per_epoch"] = asked if training_data.is_data_set(x) else per_epoch
        x, resident, callbacks, kwargs = self._batches(x, width, steps, callbacks, kwargs)
        self.progress.begin_fit(per_epoch, epochs - initial_epoch)
        if begin_decay(self.optimizer, per_epoch, epochs - initial_epoch):
            self.make_train_function(force=True)
        if self.average is not None:
            self.average.begin(None if per_epoch is None else per_epoch * (epochs - initial_epoch))
        if self.chain_losses is not None:
            self.chain_losses.begin()
        self.check_trained()
        build_optimizer(self)
        settings = {**kwargs, "initial_epoch": initial_epoch, "validation_data": validation_data}
        self.is_fitting = True
        try:
            with self._without_optimizer(), contextlib.nullcontext() if resident is None else self.fitting(resident):
                history = super().fit(x, None, None, epochs, verbose, callbacks, **settings)
        finally:
            self.is_fitting = False
        if self.average is not None:
            self.average.put_in_place()
        self.progress.end_fit(was_stopped=bool(self.stop_training))
        return history

    @contextlib.contextmanager
    def _without_optimizer(self) -> Iterator[None]:
        """Within this context Keras does not warn that nothing is trained, if tables of rows are all that is."""
        with warnings.catch_warnings():
            if any(isinstance(guide, PerRow) and guide.trainable for guide in self.guides):
                warnings.filterwarnings("ignore", "The model does not have any trainable weights", UserWarning)
            yield

    def evaluate(self, x: Any = None, y: None = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: the ELBO and its parts at T = 1, on data as of `fit`.

        Raises:
            ValueError: if N is not known, or data are not sound.
        """
        self.progress.require_num_examples()
        x = self.checked_data(x, is_read=not self.is_fitting)  # validation may hold rows whose turn is still to come
        weights = as_weights(kwargs.get("sample_weight"), x, self.compute_dtype)
        labels = None if weights is None else np.zeros(len(weights), "float32")  # without any Keras drops the weights
        if not self.built:
            self.trace_first(x, batch_size)
        return super().evaluate(x, labels, batch_size, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; needs `num_examples`.

        Raises:
            ValueError: if it is not known.
        """
        self.progress.require_num_examples()
        self.progress.require_length("train_on_batch")
        checked = self.checked_data(x, is_read=False)
        if not self.is_started:
            self.begin(checked, None)
        self.check_trained()
        return super().train_on_batch(x, *args, **kwargs)

    def check_trained(self) -> None:
        """Refuses to go on with a compiled step, or an optimizer, made for other variables.

        Raises:
            ValueError: if what is trained has changed since the first fit after `compile`.
        """
        frozen = [guide.name for guide in self.guides if not guide.trainable]  # which may have no such variables
        trained = (frozen, [id(variable) for variable in self.trainable_variables])
        if self._trained is not None and trained != self._trained:
            raise ValueError(
                f"What is trained must stay as it was compiled, {len(self._trained[1])} variables, not become "
                f"{len(trained[1])} others: `trainable` of a guide or network has changed. Call compile again."
            )
        self._trained = trained

    def _batches(
        self, x: Any, batch_size: int | None, steps: int | None, callbacks: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, Resident | None, Any, dict[str, Any]]:
        """The batches of a fit, the same on the device, its callbacks and other settings.

        Arrays are cut and shuffled from the model's seed.
        """
        kwargs = {**kwargs, "shuffle": False}  # Keras warns otherwise of what shuffles itself
        if training_data.is_data_set(x):
            return (repeated(x) if steps else x), None, callbacks, kwargs
        weights = as_weights(kwargs.pop("sample_weight", None), x, self.compute_dtype)
        size = batch_size or training_data.DEFAULT_BATCH_SIZE
        batches = EndlessRows(x, size, self.seed, weights)
        is_resident = self.is_fit_for_device((x, weights))
        resident = batches.on_device(self.steps_per_execution, kwargs["steps_per_epoch"]) if is_resident else None
        return batches.for_fit(), resident, with_callback(callbacks, BeginRows(batches, self.progress)), kwargs


def _refuse_latents(layers: Sequence[keras.Layer]) -> None:
    """Refuses layers with latent variables of single rows, whose KL would not be counted."""
    found = [layer.name for each in layers for layer in flatten_layers(each) if isinstance(layer, HasLocalLatents)]
    if found:
        raise ValueError(
            f"`networks` and the networks of guides must have no latent variables of single rows, as {found} have: "
            "their KL would not be counted. Tell them in the story, as Local sites."
        )
