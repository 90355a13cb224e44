"""Do conversions work on networks that people use? Every architecture of `keras.applications`, without weights.

Each is built with the smallest input it accepts and ten classes, then converted to a variational network and to MC
dropout (dropout before the last layer where it has none). Shown: the relative difference of the logits with the noise
off to the original's; the spread of the logits with it on; whether the batch statistics are unchanged, bit for bit,
after 100 predictions; whether a saved and loaded conversion gives the same sample; seconds for all of it.

    python benchmarks/applications.py                 # all; or --skip-larger-than 100 (million weights)
    python benchmarks/applications.py --names MobileNetV2,DenseNet121
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

SIZES = (32, 48, 64, 71, 75, 96, 128, 139, 160, 224, 299, 331)
CLASSES = 10


@dataclass(frozen=True)
class Check:
    """What came of one conversion of one architecture; differences are relative to the largest logit."""

    architecture: str
    conversion: str
    input_size: int
    million_weights: float
    difference_without_noise: float
    spread_with_noise: float
    statistics_unchanged: bool
    loaded_difference: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the conversion kept what it promises."""
        exact = max(self.difference_without_noise, self.loaded_difference) <= 1e-5
        return exact and self.statistics_unchanged and self.spread_with_noise > 0


def architectures() -> list[str]:
    """Names of all builders in `keras.applications`."""
    import keras

    found = inspect.getmembers(keras.applications, callable)
    return [name for name, builder in found if "weights" in inspect.signature(builder).parameters]


def build(name: str) -> tuple[Any, int]:
    """The architecture with the smallest input that it accepts, and that input's size."""
    import keras

    builder = getattr(keras.applications, name)
    reasons = []
    for size in SIZES:
        keras.utils.set_random_seed(0)
        settings = {"weights": None, "input_shape": (size, size, 3), "classes": CLASSES, "classifier_activation": None}
        try:
            return builder(**settings), size
        except ValueError as error:
            reasons.append(f"{size}: {error}")
    raise ValueError(f"{name} accepts none of {SIZES}: {reasons[-1]}")


def convert(model: Any, conversion: str) -> Any:
    """The conversion with its noise reproducible."""
    import bdl

    if conversion == "variational":
        return bdl.convert.to_variational(model, prior="moped", seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bdl.convert.DecorativeDropoutWarning)
        converted = bdl.convert.to_mc_dropout(model, seed=0)
    if any(getattr(layer, "rate", 0) for layer in converted.dropout_layers()):
        return converted
    return bdl.convert.to_mc_dropout(model, rate=0.2, before="last", seed=0)


def check(name: str, conversion: str, num_predictions: int = 100) -> Check:
    """Converts one architecture and compares."""
    import keras

    import bdl

    keras.backend.clear_session()
    start = time.perf_counter()
    model, size = build(name)
    x = np.random.default_rng(0).uniform(0, 255, size=(2, size, size, 3)).astype("float32")
    expected = logits(model, x)
    before = statistics(model)
    converted = convert(model, conversion)
    with bdl.mean_weights(converted):
        difference = relative(logits(converted, x), expected)
    draws = np.stack([logits(converted, x) for _ in range(num_predictions)])
    unchanged = all(np.array_equal(one, other) for one, other in zip(before, statistics(model), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        converted.save(Path(folder) / "model.keras")
        loaded = keras.saving.load_model(Path(folder) / "model.keras")
    return Check(
        architecture=name,
        conversion=conversion,
        input_size=size,
        million_weights=model.count_params() / 1e6,
        difference_without_noise=difference,
        spread_with_noise=float(draws.std(axis=0).max() / np.abs(expected).max()),
        statistics_unchanged=unchanged,
        loaded_difference=relative(logits(loaded, x), logits(converted, x)),
        seconds=time.perf_counter() - start,
    )


def logits(model: Any, x: np.ndarray) -> np.ndarray:
    """Outputs at prediction."""
    import keras

    return keras.ops.convert_to_numpy(model(x, training=False))


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def statistics(model: Any) -> list[np.ndarray]:
    """Everything that training would move without a gradient: moving means and variances."""
    import keras

    return [keras.ops.convert_to_numpy(variable) for variable in model.non_trainable_weights]


def report(checks: list[Check]) -> None:
    """Prints a row for each conversion."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Conversions of keras.applications, noise off against the original; differences relative")
    for column in (
        "architecture",
        "input",
        "weights [10^6]",
        "conversion",
        "noise off",
        "spread",
        "statistics",
        "loaded",
    ):
        table.add_column(column)
    for each in checks:
        table.add_row(
            each.architecture,
            str(each.input_size),
            f"{each.million_weights:.1f}",
            each.conversion,
            f"{each.difference_without_noise:.1e}",
            f"{each.spread_with_noise:.1e}",
            "kept" if each.statistics_unchanged else "MOVED",
            f"{each.loaded_difference:.1e}",
        )
    console = Console(width=150)
    console.print(table)
    console.print(f"{sum(each.passed for each in checks)} of {len(checks)} passed")


def main(
    names: Annotated[str, typer.Option(help="Architectures, separated by commas; all if empty.")] = "",
    skip_larger_than: Annotated[float, typer.Option(help="Million weights.")] = 1e9,
    predictions: Annotated[int, typer.Option(help="Predictions before the statistics are compared.")] = 100,
    backend: Annotated[str, typer.Option(help="Keras backend.")] = "tensorflow",
    output: Annotated[Path | None, typer.Option(help="JSON file for the results; an earlier one is continued.")] = None,
) -> None:
    """Converts them all and prints the table."""
    os.environ["KERAS_BACKEND"] = backend
    checks = [Check(**each) for each in json.loads(output.read_text())] if output and output.exists() else []
    done = {(each.architecture, each.conversion) for each in checks}
    for name in names.split(",") if names else architectures():
        wanted = [each for each in ("variational", "mc dropout") if (name, each) not in done]
        if not wanted or build(name)[0].count_params() > skip_larger_than * 1e6:
            continue
        for conversion in wanted:
            checks.append(check(name, conversion, predictions))
            print(json.dumps(asdict(checks[-1])), flush=True)
            if output is not None:
                draft = output.with_suffix(".tmp")
                draft.write_text(json.dumps([asdict(each) for each in checks], indent=1))
                draft.replace(output)
    report(checks)


if __name__ == "__main__":
    typer.run(main)
