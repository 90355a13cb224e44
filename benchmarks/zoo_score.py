"""What the zoo's runs say about the verdicts: confusion, false alarms, onset, cost and remedies.

Verdicts are functions of recorded quantities, so that every run is judged anew by the rules of today.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from zoo_cases import cases
from zoo_remedies import applicable, case_of, read_trials, trial_key

from bdl.diagnostics import Quantities, judge
from bdl.diagnostics.symptoms import is_less_accurate

_HALVES = ("calibration", "scoring", "all")
# Verdicts about the budget itself can only be given when it is spent, and one about the signal needs the twin.
_AT_THE_END = ("slow", "few_steps", "shuffled", "count_shuffled", "student_shuffled")
_POINT = 0.01

Result = dict[str, Any]


def judged_results(path: Path, half: str) -> tuple[list[Result], list[Result]]:
    """Runs of a half of the zoo, judged by the rules of today, and those that failed."""
    if half not in _HALVES:
        raise SystemExit(f"--half must be one of {_HALVES}, not {half!r}.")
    results = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    labels = _labels({result["seed"] for result in results})
    results = [result for result in results if half in ("all", _half_of(result["seed"])) and result["key"] in labels]
    results = [{**result, "right": labels[result["key"]]} for result in results]
    failed = [result for result in results if "error" in result]
    return [_judged(result) for result in results if "error" not in result], failed


def report(path: Path, trials: Path, half: str, output: Path | None) -> None:
    """Prints the figures of a half of the zoo; writes them to a JSON file if one is given."""
    results, failed = judged_results(path, half)
    figures = {
        "runs": len(results),
        "failed": [f"{result['key']}: {result['error']}" for result in failed],
        "confusion": _confusion(results),
        "verdicts": _verdicts(results),
        "onset": _onset(results),
        "callback_share": _quantiles([result["own_share"] for result in results]),
        "remedies": _remedies(results, read_trials(trials)),
    }
    _print(figures, results)
    if output is not None:
        from bdl.report import write_atomically

        write_atomically(output, json.dumps(figures, indent=1) + "\n")


def _labels(seeds: set[int]) -> dict[str, tuple[str, ...]]:
    """Right verdicts of each run that the zoo holds today, by its identity; with and without real data."""
    return {case.key: case.right for case in cases(sorted(seeds), Path())}


def _half_of(seed: int) -> str:
    """Rules were set by runs of even seeds, and later changed by those of seeds 1, 3, 5 and 7."""
    return "calibration" if seed % 2 == 0 or seed < 9 else "scoring"


def _judged(result: Result) -> Result:
    live = [(values["at"], judge(Quantities.from_dict(values)).verdict) for values in result["live"]]
    finding = judge(Quantities.from_dict(result["quantities"]))
    first = next((at for at, verdict in live if verdict in result["right"]), None)
    return {**result, "verdict": finding.verdict, "first_right": first, "live_verdicts": live}


def _is_healthy(result: Result) -> bool:
    return "healthy" in result["right"]


def _is_as_accurate(result: Result) -> bool:
    """Whether a run reached its twin's accuracy within two standard errors: what happened, and not what was done."""
    return not is_less_accurate(Quantities.from_dict(result["quantities"]), 0.0)


def _is_right(result: Result) -> bool:
    return result["verdict"] in result["right"]


def _confusion(results: list[Result]) -> dict[str, dict[str, int]]:
    """Verdicts given, by what was done."""
    table: dict[str, Counter[str]] = {}
    for result in results:
        table.setdefault(f"{result['kind']} ({'/'.join(result['right'])})", Counter())[result["verdict"]] += 1
    return {name: dict(counts.most_common()) for name, counts in table.items()}


def _verdicts(results: list[Result]) -> dict[str, Any]:
    faulty = [result for result in results if not _is_healthy(result)]
    healthy = [result for result in results if _is_healthy(result)]
    accurate = [result for result in healthy if _is_as_accurate(result)]
    return {
        "faulty_right": _share([_is_right(result) for result in faulty]),
        "false_alarms": _share([not _is_right(result) for result in healthy]),
        "false_alarms_where_as_accurate": _share([not _is_right(result) for result in accurate]),
        "wrong": [f"{result['key']} -> {result['verdict']}" for result in results if not _is_right(result)],
    }


def _onset(results: list[Result]) -> dict[str, Any]:
    """When the verdict first came while training, as a share of the budget; 1 where it came only from `diagnose`."""
    watched = [r for r in results if not _is_healthy(r) and r["kind"] not in _AT_THE_END]
    shares = [1.0 if r["first_right"] is None else r["first_right"] / r["epochs"] for r in watched]
    earlier = [r["epochs"] - r["first_right"] for r in watched if r["first_right"] is not None]
    by_kind = {
        kind: float(np.median([share for share, r in zip(shares, watched, strict=True) if r["kind"] == kind]))
        for kind in dict.fromkeys(r["kind"] for r in watched)
    }
    quiet = ("healthy", "inconclusive", "still_training")
    alarmed = [
        any(verdict not in (*quiet, *r["right"]) for _, verdict in r["live_verdicts"])
        for r in results
        if _is_healthy(r)
    ]
    return {
        "share_of_budget": _quantiles(shares),
        "before_the_last_epoch": _share([share < 1.0 for share in shares]),
        "epochs_before_the_last": _quantiles(earlier),
        "by_kind": by_kind,
        "healthy_runs_with_a_live_alarm": _share(alarmed),
    }


def _remedies(results: list[Result], trials: dict[str, Any]) -> dict[str, Any]:
    """For each verdict and remedy: how many runs came within a point of their twin's test accuracy.

    The gap of a run is that of its remedied network, a mean over splits; runs may share one.
    """
    gaps: dict[str, dict[str, dict[str, float]]] = {}
    first: dict[str, list[bool]] = {}
    on_first_split: list[bool] = []
    networks: dict[str, bool] = {}
    could_not = 0
    for result in results:
        if not _is_right(result) or result["verdict"] == "diverged":
            continue
        remedies = applicable(result["verdict"], Quantities.from_dict(result["quantities"]))
        could_not += bool(remedies) and result["kind"].startswith("foreign")
        for number, remedy in enumerate(remedies):
            trial = trials.get(trial_key(remedy.name, case_of(result)))
            if trial is None or None in trial["accuracy"]:
                continue
            pairs = zip(trial["accuracy"], trial["twin_accuracy"], strict=True)
            each = [accuracy - twin for accuracy, twin in pairs]
            gap = float(np.mean(each))
            gaps.setdefault(result["verdict"], {}).setdefault(remedy.name, {})[trial["key"]] = gap
            if number == 0:
                first.setdefault(result["verdict"], []).append(gap >= -_POINT)
                on_first_split.append(each[0] >= -_POINT)
                networks[trial["key"]] = gap >= -_POINT
    table = {
        verdict: {
            name: {
                "within_a_point": sum(gap >= -_POINT for gap in values.values()),
                "networks": len(values),
                "mean_gap": float(np.mean(list(values.values()))),
            }
            for name, values in remedies.items()
        }
        for verdict, remedies in gaps.items()
    }
    return {
        "first_within_a_point": _share([hit for hits in first.values() for hit in hits]),
        "first_within_a_point_on_one_split": _share(on_first_split),
        "networks_within_a_point": _share(list(networks.values())),
        "first_by_verdict": {verdict: _share(hits) for verdict, hits in first.items()},
        "networks_short": sorted(key for key, hit in networks.items() if not hit),
        "could_not_be_applied": could_not,
        "table": table,
    }


def _share(truths: list[bool]) -> dict[str, Any]:
    """Share of what is true, with Wilson's 95 % interval."""
    n, hits, z = len(truths), sum(truths), 1.96
    if n == 0:
        return {"hits": 0, "of": 0}
    share = hits / n
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return {"hits": hits, "of": n, "share": share, "low": max(low, 0.0), "high": min(high, 1.0)}


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"{q:.0%}": float(np.quantile(values, q)) for q in (0.1, 0.5, 0.9, 0.95)}


def _print(figures: dict[str, Any], results: list[Result]) -> None:
    verdicts, onset = figures["verdicts"], figures["onset"]
    print(f"{figures['runs']} runs, {sum(_is_healthy(result) for result in results)} of them healthy")
    for line in figures["failed"]:
        print("failed:", line)
    for kind, counts in figures["confusion"].items():
        print(f"  {kind}: " + ", ".join(f"{verdict} {n}" for verdict, n in counts.items()))
    print("faulty runs named right:", _said(verdicts["faulty_right"]))
    print("false alarms:", _said(verdicts["false_alarms"]))
    print("  on runs as accurate as their twin:", _said(verdicts["false_alarms_where_as_accurate"]))
    for line in verdicts["wrong"]:
        print("  wrong:", line)
    print("onset, share of the budget:", _quantiles_said(onset["share_of_budget"]))
    print("  by kind:", ", ".join(f"{kind} {share:.2f}" for kind, share in onset["by_kind"].items()))
    print("called before the last epoch:", _said(onset["before_the_last_epoch"]))
    print("epochs before the last, of those called:", _quantiles_said(onset["epochs_before_the_last"]))
    print("healthy runs with an alarm at any epoch:", _said(onset["healthy_runs_with_a_live_alarm"]))
    print("callback's share of fit:", _quantiles_said(figures["callback_share"]))
    remedied = figures["remedies"]
    print("first remedy within a point of the twin, runs:", _said(remedied["first_within_a_point"]))
    print("  of different networks:", _said(remedied["networks_within_a_point"]))
    print("  on the first split alone:", _said(remedied["first_within_a_point_on_one_split"]))
    print("  short:", ", ".join(remedied["networks_short"]))
    for verdict, share in figures["remedies"]["first_by_verdict"].items():
        print(f"  first, {verdict}:", _said(share))
    for verdict, remedies in figures["remedies"]["table"].items():
        for name, row in remedies.items():
            print(f"  {verdict}: {name}: {row['within_a_point']} of {row['networks']}, mean gap {row['mean_gap']:+.3f}")
    print("could not be applied:", figures["remedies"]["could_not_be_applied"])


def _said(share: dict[str, Any]) -> str:
    if not share["of"]:
        return "none"
    return f"{share['hits']} of {share['of']} ({share['share']:.1%}; 95 %: {share['low']:.1%} to {share['high']:.1%})"


def _quantiles_said(quantiles: dict[str, float]) -> str:
    return ", ".join(f"{q} {value:.3g}" for q, value in quantiles.items()) or "none"
