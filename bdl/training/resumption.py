"""Fits that are interrupted and go on: what they need beside the weights to end as if nothing had happened.

A training is a function of its weights, its seeds, its count of steps and the order of its data. Keras saves the first,
and the counts; here is the rest. The order of the rows in an epoch is a function of the seeds of the model's layers and
of the steps done before it, and those are saved with the weights.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from bdl.keras_internals import begin_at_epoch, flatten_layers, in_order, innermost, split_for_validation
from bdl.layers.noise_layers import SavesSeed
from bdl.training.data import is_data_set
from bdl.training.failures import SurvivesFailures
from bdl.training.progress import Progress
from bdl.training.saving import SavesWhole

_SEEDS_KEY = "seeds_of_other_layers"
_PLACE_KEY = "place_in_fit"
_WORD = 0xFFFFFFFF


class Follows(Protocol):
    """An order of rows that a fit can go on in."""

    def begin_after(self, seeds: Sequence[int], steps: int, done: int) -> None:
        """Says where the fit begins, before its first batch is read.

        Args:
            seeds: Of the model's generators, its own first.
            steps: Training steps done.
            done: How many of them are of the epoch that the fit goes on with.
        """


class Resumes(SavesWhole, SurvivesFailures):
    """Mixin of a Keras model that saves the seeds of all its layers, and shuffles arrays by them."""

    progress: Progress
    optimizer: Any
    train_function: Any

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables, and the seeds of layers that do not save theirs: those of Keras, for one."""
        super().save_own_variables(store)  # type: ignore[misc]
        seeds = [_state(generator) for generator in _unsaved_seeds(self)]
        if seeds:
            store[_SEEDS_KEY] = np.stack(seeds)
        resumption = vars(self).get("_resumption")
        if resumption is not None:
            store[_PLACE_KEY] = np.array(resumption.place())

    def load_own_variables(self, store: Any) -> None:
        """Loads the variables, and such seeds where the file has them and is of the same layers."""
        keys = list(store.keys())
        others = [key for key in keys if key not in (_SEEDS_KEY, _PLACE_KEY)]
        super().load_own_variables({key: store[key] for key in others})  # type: ignore[misc]
        resumption = vars(self).get("_resumption")
        if resumption is not None and _PLACE_KEY in keys:
            epoch, done = np.asarray(store[_PLACE_KEY])
            resumption.restored = int(epoch), int(done)
        generators = _unsaved_seeds(self)
        seeds = list(np.asarray(store[_SEEDS_KEY])) if _SEEDS_KEY in keys else []
        if len(seeds) == len(generators):
            for generator, seed in zip(generators, seeds, strict=True):
                generator.state.assign(seed)

    def make_train_function(self, force: bool = False) -> Any:
        """As `keras.Model.make_train_function`; on Torch the noise of Keras' layers follows the model's seeds."""
        before = getattr(self, "train_function", None)
        super().make_train_function(force)
        made: Any = self.train_function
        if made is not before:
            self.train_function = _seeded(made, self)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **settings: Any,
    ) -> Any:
        """As `keras.Model.fit`; arrays are shuffled by the seeds of the model's layers, and not by global ones.

        Args:
            x: As in Keras.
            y: As in Keras.
            batch_size: As in Keras.
            epochs: As in Keras.
            verbose: As in Keras.
            callbacks: As in Keras.
            **settings: As in Keras, and `order` where `x` is in one that `Follows` the steps.

        Warns:
            UserWarning: if it goes on from a backup, and the result is not that of a fit without interruption.
        """
        order: Follows | None = settings.pop("order", None)
        if order is None and not is_data_set(x):
            order, x, y, settings = _ordered(self, x, y, batch_size, settings)
        is_cut = order is None and not is_data_set(x) and settings.get("steps_per_epoch") is not None
        resumption = _Resumption(self, order, settings.get("initial_epoch", 0), is_cut)
        callbacks = resumption.among(callbacks)
        object.__setattr__(self, "_resumption", resumption)  # not through Keras, which would track it
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **settings)
        finally:
            object.__delattr__(self, "_resumption")


class _Resumption(keras.callbacks.Callback):
    """Lets a fit go on after the step that a backup restored. It is the last callback.

    A file of weights that is written during a fit says how far the fit is. Keras keeps the number of the epoch in a
    second file, which a kill may leave behind the first, and begins each epoch with its first batch, after a backup of
    the middle of one, too (`BackupAndRestore(save_freq=100)`). The order of the rows leaves out what was trained, and
    the epoch ends early.

    Args:
        model: The model, before callbacks may restore it.
        order: Of the rows; None where it is not known.
        initial_epoch: As of `fit`.
        is_cut: Whether epochs are parts of a pass over arrays (`steps_per_epoch`).

    Attributes:
        restored: Place in a fit, as of `place`, that a file of weights has told; None before.
    """

    def __init__(self, model: Any, order: Follows | None, initial_epoch: int, is_cut: bool) -> None:
        super().__init__()
        self._fitted, self._order, self._is_cut = model, order, is_cut
        self._epoch, self._before = initial_epoch, model.progress.step
        self._done = 0
        self._left: int | None = None
        self._has_backup = self._has_ended_epoch = False
        self.restored: tuple[int, int] | None = None

    def among(self, callbacks: Any) -> Any:
        """Callbacks of a fit, in any form that Keras takes, with this one and another as the first."""
        given = getattr(callbacks, "callbacks", None) or keras.tree.flatten(callbacks or [])
        backups = [each for each in given if isinstance(each, keras.callbacks.BackupAndRestore)]
        self._has_backup = bool(backups)
        for backup in backups:
            _remove_torn(Path(backup.backup_dir) / "training_metadata.json")
        # Keras waits for each batch's logs where a callback looks at batches, as backups do anyway.
        first, last = _Epochs(self), [_Batches(self), self] if backups else [self]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.insert(0, first)
            for each in last:
                callbacks.append(each)
            return callbacks
        return [first, *given, *last]

    def place(self) -> tuple[int, int]:
        """The epoch, and how many of its steps are done."""
        return self._epoch, self._fitted.progress.step - self._before

    def on_train_begin(self, logs: Any = None) -> None:
        """Goes to where the backup was made."""
        in_epoch = (self.params or {}).get("steps")
        if self._has_backup and self.restored is not None:
            self._epoch, self._done = self.restored
            if in_epoch and self._done >= in_epoch:
                self._epoch, self._done = self._epoch + 1, 0
            begin_at_epoch(self._fitted, self._epoch)
            if self._order is None and (self._done or self._is_cut):
                warnings.warn(_told(self._done, in_epoch, self._is_cut), stacklevel=2)
                self._done = 0
        if self._done and in_epoch:
            self._left = in_epoch - self._done
        if self._order is not None:
            self._order.begin_after(seeds_of(self._fitted), self._fitted.progress.step, self._done)

    def begin_epoch(self, epoch: int) -> None:
        """Notes where an epoch begins."""
        self._epoch, self._before, self._done = epoch, self._fitted.progress.step - self._done, 0

    def end_epoch(self, epoch: int) -> None:
        """Goes on with the next epoch, unless another callback stopped the fit."""
        self._epoch, self._before = epoch + 1, self._fitted.progress.step
        if self._has_ended_epoch:
            self._fitted.stop_training = self._has_ended_epoch = False
        self._left = None

    def end_batch(self, batch: int) -> None:
        """Leaves the loop over the batches of the epoch that the fit goes on with, where it is done."""
        if self._left is not None and batch + 1 >= self._left and not self._fitted.stop_training:
            self._fitted.stop_training = self._has_ended_epoch = True


class _Epochs(keras.callbacks.Callback):
    """Tells a resumption of epochs, as the first callback: others may save the model, or stop the fit, after it."""

    def __init__(self, resumption: _Resumption) -> None:
        super().__init__()
        self._resumption = resumption

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Tells it."""
        self._resumption.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Tells it."""
        self._resumption.end_epoch(epoch)


class _Batches(keras.callbacks.Callback):
    """Tells a resumption of batches, after the user's callbacks."""

    def __init__(self, resumption: _Resumption) -> None:
        super().__init__()
        self._resumption = resumption

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Tells it."""
        self._resumption.end_batch(batch)


def _told(done: int, in_epoch: int | None, is_cut: bool) -> str:
    """Why a fit that goes on is not what it would have been."""
    if is_cut:
        return (
            "`steps_per_epoch` must be left out, or be all batches of the arrays, for a resumed training to be that "
            "without interruption: Keras goes through the rows in an order that is lost. Leave it out."
        )
    part = f"{done} of its {in_epoch} batches" if in_epoch else "some of its batches"
    return (
        f"`save_freq` of BackupAndRestore must be 'epoch' for data of this kind: Keras begins the epoch of the backup "
        f"anew, and trains {part} twice, so that the result is not that of a training without interruption. Pass "
        "arrays, or BackupAndRestore(save_freq='epoch')."
    )


def _remove_torn(path: Path) -> None:
    """Removes a file of JSON that a kill has torn; the weights beside it say what it said."""
    try:
        json.loads(path.read_text())
    except ValueError:
        path.unlink()
    except OSError:  # there is none, or it lies where only Keras reads it
        return


class _SeededOrder:
    """The order of the rows of a fit: of each epoch a permutation by the model's seeds and the steps before it.

    Args:
        model: The model.
        shuffle: As of `keras.Model.fit`.
    """

    def __init__(self, model: Any, shuffle: Any) -> None:
        self._model, self._shuffle = model, shuffle
        self._seeds: Sequence[int] = ()
        self._done = self._left_out = self._steps = 0

    def begin_after(self, seeds: Sequence[int], steps: int, done: int) -> None:
        """As of `Follows`."""
        self._seeds, self._done = seeds, done

    def begin_epoch(self) -> None:
        """Notes the steps before the epoch."""
        self._left_out, self._done = self._done, 0
        self._steps = self._model.progress.step - self._left_out

    def rows(self, num_rows: int, batch_size: int) -> np.ndarray:
        """Row numbers of the epoch, from the first batch that was not trained."""
        rows = np.arange(num_rows)
        random = np.random.default_rng([*self._seeds, self._steps])
        if self._shuffle == "batch":  # within each batch
            rows = np.concatenate(
                [random.permutation(rows[begin : begin + batch_size]) for begin in range(0, num_rows, batch_size)]
            )
        elif self._shuffle:
            rows = random.permutation(rows)
        return rows[self._left_out * batch_size :]


def seed_generators(model: keras.Layer) -> Iterator[tuple[keras.Layer, keras.random.SeedGenerator]]:
    """The seed generators of a model, with the layers that have them.

    Example:
    >>> len(list(seed_generators(keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(1)]))))
    1
    """
    for layer in flatten_layers(model):
        for value in vars(layer).values():
            if isinstance(value, keras.random.SeedGenerator):
                yield layer, value


def _unsaved_seeds(model: Any) -> list[keras.random.SeedGenerator]:
    """Generators whose states neither their layers save nor the model itself."""
    pairs = seed_generators(model)
    return [generator for layer, generator in pairs if layer is not model and not isinstance(layer, SavesSeed)]


def fingerprint_of_seeds(model: keras.Layer) -> str | None:
    """A digest of what the generators of a model began with; None of a model without any.

    Example:
    >>> one, other = (fingerprint_of_seeds(keras.layers.Dropout(0.5, seed=seed)) for seed in (1, 2))
    >>> one == other
    False
    """
    seeds = [int(_state(generator)[0]) for _, generator in seed_generators(model)]
    return hashlib.sha256(repr(seeds).encode()).hexdigest()[:16] if seeds else None


def fingerprint_of_optimizer(model: Any) -> str | None:
    """A digest of the optimizer's settings, but for the rate, which callbacks change; None without an optimizer.

    Example:
    >>> model = keras.Sequential([keras.layers.Dense(1)])
    >>> model.compile("adam")
    >>> adam = fingerprint_of_optimizer(model)
    >>> model.compile("sgd")
    >>> fingerprint_of_optimizer(model) == adam
    False
    """
    optimizer = innermost(getattr(model, "optimizer", None))
    if optimizer is None:
        return None
    plain = (bool, int, float, str, type(None))
    kept = {name: value for name, value in optimizer.get_config().items() if isinstance(value, plain)}
    kept = {name: value for name, value in kept.items() if name not in ("learning_rate", "name")}
    settings = (type(optimizer).__name__, sorted(kept.items()))
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def _state(generator: keras.random.SeedGenerator) -> np.ndarray:
    # By way of a tensor, for a variable mirrored over replicas is no array.
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(generator.state))


def seeds_of(model: Any) -> list[int]:
    """What the generators of a model began with, which draws do not change: its own first, its optimizer's last."""
    seeds = [int(_state(generator)[0]) for _, generator in seed_generators(model)]
    own = getattr(innermost(model.optimizer), "seed", None)  # of an optimizer with noise of its own
    return [seed & _WORD for seed in (*seeds, own or 0)]


def _seeded(step: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """A step of Torch in which the global generator follows the model's seeds and steps, if a layer draws from it.

    Keras' dropout without a seed does there. The generator is put back where it was.
    """
    if keras.backend.backend() != "torch" or not _unsaved_seeds(model):
        return step
    import torch

    generators = [generator for _, generator in seed_generators(model)]
    variables = [variable.value for variable in model.variables]
    devices = list({each.device for each in variables if each.device.type == "cuda"})

    def run(*args: Any, **kwargs: Any) -> Any:
        entropy = [*(int(_state(each)[0]) & _WORD for each in generators), model.progress.step]
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            return step(*args, **kwargs)

    return run


def _ordered(model: Any, x: Any, y: Any, batch_size: int | None, settings: dict[str, Any]) -> Any:
    """An order for arrays, with inputs, labels and settings for Keras to train in it; None where they are no arrays."""
    order = _SeededOrder(model, settings.get("shuffle", True))
    weights, split = settings.get("sample_weight"), settings.get("validation_split")
    settings = dict(settings)
    if split and settings.get("validation_data") is None:
        (x, y, weights), settings["validation_data"] = split_for_validation((x, y, weights), split)
        settings.update(validation_split=0.0, sample_weight=weights)
    names = ("sample_weight", "class_weight", "steps_per_epoch")
    given = in_order(order, x, y, batch_size, {name: settings.get(name) for name in names})
    if given is None:
        return None, x, y, settings
    return order, given, None, {**settings, "sample_weight": None, "class_weight": None}
