"""The run that a callback watches: what is known of it from the start, and what a measurement adds to its logs."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.accounting import Accounting, present_temperature, told_examples, with_counts
from bdl.diagnostics.gradient_watch import GradientWatch
from bdl.diagnostics.journal import Journal
from bdl.diagnostics.measure import ProbeData, network_of
from bdl.diagnostics.quantities import LayerHealth, Quantities
from bdl.diagnostics.reading import Readings
from bdl.diagnostics.record import FORMAT, RunRecord
from bdl.diagnostics.story import movement, story_quantities
from bdl.diagnostics.weights import layer_health, weight_posteriors
from bdl.likelihoods import Likelihood
from bdl.protocols import HasTemperature, TellsStory
from bdl.training.iterates import Iterate


@dataclass(eq=False)
class Run:
    """State of the run that is being watched.

    Args:
        journal: Where its events are written.
        likelihood: What the outputs mean; None of a model of a story.
        size: Training examples, N.
        train: Probe of the training data.
        validation: Probe of other data.
        accounting: How the objective counts the KL, once it is known.
        readings: Posteriors of layers of other libraries, once they are read.
        start: What scales were made of before training.
        is_read: Whether the model was built, and its layers were looked at.
        has_posteriors: Whether any was found.
        needs_accounting: Whether the compiled loss is still to be measured.
        last_probe: Epoch of the last measurement.
        steps: Batches in an epoch.
        model_id: Whose run it is.
        last_step: Steps of the optimizer at the last epoch's end.
        offset: Epochs of earlier fits, where the present one counts from 1 again.
        seconds_before: Recorded seconds of those fits.
        is_resumed: Whether the run goes on with one before.
        resumed_after: The last epoch of that one, in its count.
        seeds: A digest of what the model's seeds began with.
        optimizer: A digest of the settings that the optimizer began with, but for its rate.
        learning_rate: That rate.
        is_first: Whether no epoch of the present fit has ended yet.
        is_over: Whether the training has ended.
        sites: Kinds of the latent sites by name, of a model of a story; None of a network.
        gradient: What watches the noise of the gradient.
        iterates: Where the guides of such a model were at the end of each epoch.
    """

    journal: Journal
    likelihood: Likelihood | None
    size: int | None
    train: ProbeData | None
    validation: ProbeData | None
    accounting: Accounting | None = None
    readings: Readings | None = None
    start: dict[str, np.ndarray] | None = None
    is_read: bool = False
    has_posteriors: bool = False
    needs_accounting: bool = False
    last_probe: int = 0
    steps: int | None = None
    model_id: int | None = None
    last_step: int = 0
    offset: int = 0
    seconds_before: float = 0.0
    is_resumed: bool = False
    resumed_after: int | None = None
    seeds: str | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    is_first: bool = True
    is_over: bool = False
    sites: dict[str, str] | None = None
    gradient: GradientWatch = field(default_factory=lambda: GradientWatch(None, None, None))
    iterates: list[Iterate] = field(default_factory=list)

    def go_on_from(self, before: Run | RunRecord, epochs: list[dict[str, Any]]) -> None:
        """Becomes the same run as one before, of which these epochs are known."""
        self.is_resumed = True
        self.resumed_after = epochs[-1]["epoch"] if epochs else 0
        self.seconds_before = epochs[-1].get("seconds", 0.0) if epochs else 0.0
        if isinstance(before, RunRecord):
            self.journal.run = before.run
        else:
            self.journal.run, self.start, self.model_id = before.journal.run, before.start, before.model_id
            self.iterates = before.iterates

    def watch_story(self, model: TellsStory) -> None:
        """Notes where the guides are at the end of an epoch."""
        found = model.iterate()
        if found is not None:
            self.iterates.append(found)

    def story_quantities(self, model: TellsStory, entry: dict[str, Any]) -> Quantities:
        """What is known at the end of a model of a story."""
        q = story_quantities(model, entry, self.size)
        assert q.story is not None
        story = dataclasses.replace(q.story, **movement(self.iterates, model))
        return dataclasses.replace(q, is_over=self.is_over, story=story)

    def write_start(self, model: keras.Model, planned: int | None) -> None:
        """Writes what is known at the start, of so many planned epochs."""
        self.journal.write(
            {
                "event": "start",
                "format": FORMAT,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "model": model.name,
                "backend": keras.backend.backend(),
                **self.start_event(planned),
            }
        )

    def start_event(self, planned: int | None) -> dict[str, Any]:
        """What a record says of the run at its start."""
        has_data = self.train is not None or self.validation is not None
        known = {"num_examples": self.size, "planned_epochs": planned, "steps": self.steps, "has_data": has_data}
        others = {
            "sites": self.sites,
            "seeds": self.seeds,
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "resumed_after": self.resumed_after,
        }
        return {**known, **{name: value for name, value in others.items() if value is not None}}

    def layers(self, model: keras.Model, start: dict[str, np.ndarray] | None) -> tuple[LayerHealth, ...]:
        """The layers as they stand, without what needs data, compared with the scales of a start."""
        foreign = None if self.readings is None else self.readings.posteriors
        posteriors = weight_posteriors(network_of(model), foreign)
        layers: tuple[LayerHealth, ...] = with_counts(layer_health(model, posteriors, start), self.accounting)
        return layers

    def counts(self, model: keras.Model) -> dict[str, Any]:
        """What is known before the first step."""
        assert self.accounting is not None
        own = model.num_examples if isinstance(model, HasTemperature) else None
        return {
            "temperature": self.accounting.temperature,
            "declared_temperature": self.accounting.declared,
            "unread": self.accounting.unread,
            "told_examples": told_examples(own, self.size),
            "layers": self.layers(model, None),
        }

    def present_temperature(self, model: keras.Model, entry: dict[str, Any]) -> float | None:
        """T of the model as it stands, which may be of an earlier epoch, restored; else that of the last logs."""
        own = present_temperature(model, self.size)
        return entry.get("temperature") if own is None else own


def complete(entry: dict[str, Any], q: Quantities) -> None:
    """Adds to an epoch's logs what the model does not log itself; plain Keras models know neither NLL nor KL apart."""
    for key, value in (
        ("nll", q.train.nll_gibbs if q.train else None),
        ("kl", q.kl),
        ("val_nll", q.validation.nll_gibbs if q.validation else None),
    ):
        if value is not None and entry.get(key) is None:
            entry[key] = value
    if q.judged is not None:
        entry.setdefault("val_accuracy", q.judged.accuracy)
    if entry.get("elbo") is None and q.train is not None and q.rate is not None:
        entry["elbo"] = -(entry["nll"] + q.rate)
    if entry.get("temperature") is None:
        entry["temperature"] = q.temperature


def steps_of(model: keras.Model) -> int:
    """Steps that a model's optimizer has done."""
    optimizer = getattr(model, "optimizer", None)
    # By way of a tensor, for a variable mirrored over replicas is no number.
    return 0 if optimizer is None else int(ops.convert_to_numpy(ops.convert_to_tensor(optimizer.iterations)))


def rate_of(model: keras.Model) -> float | None:
    """The present learning rate of a model's optimizer, to seven digits; None without one."""
    rate = getattr(getattr(model, "optimizer", None), "learning_rate", None)
    if rate is None:
        return None
    return float(f"{float(ops.convert_to_numpy(ops.convert_to_tensor(rate))):.7g}")


def as_number(value: Any) -> Any:
    """A plain number, where it is one."""
    return float(value) if hasattr(value, "__float__") else value
