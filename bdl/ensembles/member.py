"""One member: made, trained, watched and saved, wherever that runs. What it becomes follows from its seed alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from bdl.diagnostics import Finding, TrainingHealth
from bdl.diagnostics.accounting import likelihood_of
from bdl.ensembles.settings import described, described_model, difference, session_settings
from bdl.keras_internals import fresh_session
from bdl.protocols import TellsStory
from bdl.report import replacing, write_atomically
from bdl.training.data import is_data_set

_PROCESS = uuid.uuid4().hex
"""Tells this process from others; a forked one has its parent's."""


@dataclass(frozen=True)
class Plan:
    """What all members share; it travels to the workers.

    Args:
        make: The user's function from a seed to a compiled model, or to one and arguments of its `fit`.
        folder: Where files are written.
        seed: Of the first member; each has the next one.
        arguments: Of `fit`, by name.
        settings: What is known of the members without making them.
        process: The caller's process, if members have to be trained in others.
    """

    make: Callable[[int], Any]
    folder: Path
    seed: int
    arguments: dict[str, Any]
    settings: dict[str, Any]
    process: str | None

    @classmethod
    def of(cls, make: Callable[[int], Any], folder: Path, seed: int, arguments: dict[str, Any], is_here: bool) -> Plan:
        """The plan of a call: `is_here` says whether members are trained in this very process."""
        settings = {**session_settings(), **{name: described(value) for name, value in arguments.items()}}
        return cls(make, folder, seed, arguments, settings, None if is_here else _PROCESS)

    def model_file(self, number: int) -> Path:
        """Where a member is, once it is trained."""
        return self.folder / f"member-{number}.keras"

    def settings_file(self, number: int) -> Path:
        """Where it is written what a member is trained with."""
        return self.folder / f"member-{number}.json"

    def record_file(self, number: int) -> Path:
        """Where it is written how the training went."""
        return self.folder / f"member-{number}.jsonl"


def changed_since(plan: Plan, number: int) -> str | None:
    """Compares a trained member with the plan.

    Args:
        plan: Of the members.
        number: Of a trained one.

    Returns:
        What differs, in words, or None.
    """
    path = plan.settings_file(number)
    if not path.is_file():
        return f"there is no {path.name} with the settings"
    before = json.loads(path.read_text(encoding="utf-8"))
    with _session(plan, number):
        _, _, now = _made(plan, number)
    return difference(before, now)


def train_member(plan: Plan, number: int) -> Finding | None:
    """Trains a member, and writes its files: the settings first, the model last.

    Args:
        plan: Of the members.
        number: Of this one.

    Returns:
        What `TrainingHealth` found at the end.

    Raises:
        ValueError: if the process is not one that may train it, or `make` returns something else than a model.
    """
    with _session(plan, number):
        model, arguments, settings = _made(plan, number)
        write_atomically(plan.settings_file(number), json.dumps(settings, indent=2))
        health = TrainingHealth(
            record=plan.record_file(number), on_verdict="record", **_what_tells_health(model, arguments)
        )
        callbacks = [*(arguments.pop("callbacks", None) or ()), health]
        model.fit(**{"verbose": 0, **arguments}, callbacks=callbacks)
        with replacing(plan.model_file(number)) as draft:
            model.save(draft)
    return health.finding


def _session(plan: Plan, number: int) -> Any:
    """Names and random numbers of a new process with the member's seed.

    Raises:
        ValueError: if the member would share them with others that are trained at the same time, or if the process has
            other settings than the caller.
    """
    if plan.process == _PROCESS:
        raise ValueError(
            "`executor` must train each member in a process that was started anew: threads share their random numbers, "
            "and TensorFlow and JAX hang in forked processes. Use ProcessPoolExecutor(mp_context="
            "multiprocessing.get_context('spawn')), loky or Ray; or None, which trains one after another."
        )
    here = session_settings()
    found = difference(here, {name: plan.settings[name] for name in here})
    if found is not None:
        raise ValueError(
            f"`executor` must have workers with the caller's settings, but one has {found}. Set KERAS_BACKEND in their "
            "environment, and settings of keras.config in the module of `make`."
        )
    return fresh_session(plan.seed + number)


def _made(plan: Plan, number: int) -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """A member before its training, the arguments of its `fit`, and what describes both."""
    seed = plan.seed + number
    made = plan.make(seed)
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(model, keras.Model) or not model.compiled or not isinstance(own, dict):
        is_uncompiled = isinstance(model, keras.Model) and isinstance(own, dict)
        raise ValueError(
            "`make` must return a compiled keras.Model, or (model, arguments of its fit as a dict), not "
            f"{'a model that is not compiled' if is_uncompiled else repr(made)}."
        )
    described_own = {name: described(value) for name, value in own.items()}
    settings = {"seed": seed, **plan.settings, **described_own, **described_model(model)}
    return model, {**plan.arguments, **own}, settings


def _what_tells_health(model: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    """The data that `TrainingHealth` can judge a model by: arrays, where it is known what the outputs mean."""
    x, y, validation = (arguments.get(name) for name in ("x", "y", "validation_data"))
    if isinstance(model, TellsStory) or y is None or is_data_set(x):
        return {}
    try:
        likelihood_of(model)
    except ValueError:  # of a loss of the user's own, or of several outputs: it goes by the logs
        return {}
    return {"data": (x, y), "validation_data": validation if isinstance(validation, (tuple, list)) else None}
