"""A real picture of each verdict for docs/explain/diagnostics.md: one run of the zoo's calibration half each.

python benchmarks/verdict_gallery.py                 # writes docs/images/verdicts/*.png, two minutes
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from zoo_cases import HEALTHY, NUM_FEATURES, Case, data_of

SEED = 2  # of the calibration half
CASES = (
    Case("nan", ("diverged",), "breast_cancer", 32),
    Case("missing", ("accounting_error",), "breast_cancer", 32),
    Case("times_N", ("mis_scaled_kl",), "breast_cancer", 32),
    Case("slow", ("still_training",), "digits", 32),
    Case("forget", ("underfitting",), "digits", 128),
    Case("collapse", ("collapsed",), "digits", 512),
    Case("pruned", ("over_pruned",), "digits", 320),
    Case("saturated", ("variance_saturated",), "breast_cancer", NUM_FEATURES),
    Case("stuck", ("scales_not_learned",), "digits", 32),
    Case("cold", ("near_deterministic",), "digits", 32),
    Case("overfit", ("overfitting",), "digits", 256),
    Case("rank1", HEALTHY, "digits", 64),
)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs/images/verdicts"),
    only: Annotated[str, typer.Option(help="Only this verdict.")] = "",
) -> None:
    """Trains, diagnoses and draws one patient a verdict."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import warnings
    from dataclasses import replace

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from zoo import examined

    warnings.simplefilter("ignore")
    output.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        verdict = case.right[0]
        if only and verdict != only:
            continue
        case = replace(case, seed=SEED)
        _, _, report, _, _, seconds = examined(case, data_of(case), max_cost=1.0)
        figure, axes = plt.subplots(figsize=(6.0, 3.4), layout="constrained")
        report.plot(axes)
        figure.savefig(output / f"{verdict}.png", dpi=90)
        plt.close(figure)
        print(f"{case.key}: {report.verdict} ({seconds:.0f} s)", *report.evidence, sep="\n  ", flush=True)
        if report.verdict != verdict:
            raise SystemExit(f"{case.key} was to show {verdict!r}, but it is {report.verdict!r}.")


if __name__ == "__main__":
    typer.run(main)
