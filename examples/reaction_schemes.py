"""What was measured of reactions: schemes of mass action, and the data of `stiff_kinetics.py`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import odeint


class MassAction:
    """Reactions whose rates are a constant times the concentrations of their reactants.

    Args:
        reactions: Lines such as `"k_bind: A + B -> AB"`, of at most three reactants.
        volumes: Of the species in compartments; 1 for all others. A species that changes its compartment is diluted.
    """

    def __init__(self, reactions: str, volumes: dict[str, float] | None = None) -> None:
        lines = [[part.strip() for part in line.replace("->", ":").split(":")] for line in reactions.splitlines()]
        sides = [tuple([each for each in side.split(" + ") if each] for side in line[1:]) for line in lines]
        names = [line[0] for line in lines]
        self.constants = tuple(dict.fromkeys(names))
        self.species = tuple(dict.fromkeys(each for both in sides for side in both for each in side))
        size = np.array([(volumes or {}).get(each, 1.0) for each in self.species])
        where = [[self.species.index(each) for each in before] for before, _ in sides]
        gains = np.array([[after.count(s) - before.count(s) for before, after in sides] for s in self.species])
        self.stoichiometry = gains * size[[place[0] for place in where]] / size[:, None]
        self.constant = np.array([self.constants.index(name) for name in names])
        one = len(self.species)  # the place of a number that is always 1
        self.reactants = np.array([place + [one] * (3 - len(place)) for place in where]).T
        self.in_species = np.eye(one + 1)[:, :-1][self.reactants]  # (reactants, reactions, species)
        self.in_constants = np.eye(len(self.constants))[self.constant]

    def rates_of_change(self, t: float, y: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Of the concentrations `(species,)`, with the constants `(constants,)`."""
        a, b, c = np.append(y, 1.0)[self.reactants]
        return self.stoichiometry @ (k[self.constant] * a * b * c)

    def derivatives(self, t: float, y: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the rates of change in the concentrations, and in the constants."""
        a, b, c = np.append(y, 1.0)[self.reactants]
        slopes = k[self.constant] * np.stack([b * c, a * c, a * b])
        in_species = (slopes[..., None] * self.in_species).sum(0)
        return self.stoichiometry @ in_species, self.stoichiometry @ (self.in_constants * (a * b * c)[:, None])


@dataclass(frozen=True)
class Experiment:
    """A scheme of reactions, and what was measured of it.

    Args:
        name: Of the experiment.
        scheme: The reactions.
        initial: Concentrations at the first time.
        times: In minutes.
        values: Measured, `(times, observables)`; not a number where nothing was.
        observables: Their names.
        observe: From concentrations to what is measured of them.
        num_noises: 1 where all observables have one standard deviation, or one for each.
        centres: Means of the prior of the decadic logarithms of the constants, `(constants,)`; 0 of the noises.
        decades: Standard deviations of these priors, of the constants and of the noises.
        published: Decadic logarithms of the constants in the literature, `(constants,)`.
    """

    name: str
    scheme: MassAction
    initial: np.ndarray
    times: np.ndarray
    values: np.ndarray
    observables: tuple[str, ...]
    observe: Callable[[list[Any]], list[Any]]
    num_noises: int
    centres: np.ndarray
    decades: tuple[float, float]
    published: np.ndarray

    @property
    def first(self) -> int:
        """The first time at which something was measured."""
        return int(np.isnan(self.values[0]).any())

    @property
    def tolerances(self) -> dict[str, Any]:
        """Of the solver, in the unit of each species."""
        return {"rtol": 1e-6, "atol": np.where(self.initial > 0.0, 1e-10 * self.initial, 1e-8)}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all latent numbers."""
        which = self.observables if self.num_noises > 1 else ("",)
        return (*self.scheme.constants, *(f"noise {each}".strip() for each in which))


PINENE = np.array(
    [
        [1230, 88.35, 7.3, 2.3, 0.4, 1.75],
        [3060, 76.4, 15.6, 4.5, 0.7, 2.8],
        [4920, 65.1, 23.1, 5.3, 1.1, 5.8],
        [7800, 50.4, 32.9, 6.0, 1.5, 9.3],
        [10680, 37.5, 42.7, 6.0, 1.9, 12.0],
        [15030, 25.9, 49.1, 5.9, 2.2, 17.0],
        [22620, 14.0, 57.4, 5.1, 2.6, 21.0],
        [36420, 4.5, 63.1, 3.8, 2.9, 25.7],
    ]
)
"""Minutes, and percent of five substances at 189.5 degrees Celsius (Box et al. 1973, after Fuguitt and Hawkins)."""

PINENE_SCHEME = """k1: alpha-pinene -> dipentene
k2: alpha-pinene -> allo-ocimene
k3: allo-ocimene -> pyronene
k4: allo-ocimene -> dimer
k5: dimer -> allo-ocimene"""
PINENE_RATES = np.array([5.926e-5, 2.963e-5, 2.047e-5, 2.745e-4, 3.998e-5])
"""By least squares, in 1 / min (Dolan, More and Munson 2004, COPS 3.0): the sum of squares is 19.872."""


def alpha_pinene() -> Experiment:
    """The isomerisation of alpha-pinene by heat."""
    scheme = MassAction(PINENE_SCHEME)
    values = np.concatenate([np.full((1, 5), np.nan), PINENE[:, 1:]])
    times = np.concatenate([[0.0], PINENE[:, 0]])
    initial = np.array([100.0, 0.0, 0.0, 0.0, 0.0])
    prior, published = (np.full(5, -4.0), (1.0, 1.0)), np.log10(PINENE_RATES)
    return Experiment("alpha-pinene", scheme, initial, times, values, scheme.species, list, 1, *prior, published)


STAT_SCHEME = """Epo_degradation_BaF3: Epo ->
k_phos: A + A + Epo -> AA + Epo
k_phos: A + B + Epo -> AB + Epo
k_phos: B + B + Epo -> BB + Epo
k_imp_homo: AA -> nAA
k_imp_hetero: AB -> nAB
k_imp_homo: BB -> nBB
k_exp_homo: nAA -> A + A
k_exp_hetero: nAB -> A + B
k_exp_homo: nBB -> B + B"""


def stat5(folder: Path) -> Experiment:
    """The dimerisation of STAT5A and STAT5B, and their way into the nucleus and back (Boehm et al. 2014)."""
    name = "Boehm_JProteomeRes2014"
    files = {kind: folder / "kinetics" / name / f"{kind}_{name}.tsv" for kind in ("measurementData", "parameters")}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise SystemExit(f"{missing} are missing. They are of the collection of benchmarks of PEtab, model {name}.")
    tables = {}
    for kind, path in files.items():
        with path.open() as file:
            tables[kind] = list(csv.DictReader(file, delimiter="\t"))
    observables = tuple(dict.fromkeys(row["observableId"] for row in tables["measurementData"]))
    series = [[row for row in tables["measurementData"] if row["observableId"] == each] for each in observables]
    times = np.array([float(row["time"]) for row in series[0]])
    values = np.array([[float(row["measurement"]) for row in rows] for rows in series]).T
    if values.shape != (16, 3):
        raise SystemExit(f"{files['measurementData'].name} must have 16 times of 3 observables, not {values.shape}.")
    parameters = {row["parameterId"]: row for row in tables["parameters"]}
    # Of STAT5 a part `ratio` is STAT5A; the antibody C-17 takes STAT5A and STAT5B as `antibody` to 1 - `antibody`.
    ratio, antibody = (float(parameters[each]["nominalValue"]) for each in ("ratio", "specC17"))
    volumes = dict.fromkeys(("A", "B", "AA", "AB", "BB"), 1.4) | dict.fromkeys(("nAA", "nAB", "nBB"), 0.45)
    scheme = MassAction(STAT_SCHEME, volumes)

    def observe(y: list[Any]) -> list[Any]:
        """Percent of STAT5A, and of STAT5B, that is phosphorylated, and of STAT5 that is STAT5A."""
        a, b, aa, ab, bb = (y[scheme.species.index(each)] for each in ("A", "B", "AA", "AB", "BB"))
        of_a, of_b = antibody * (a + 2.0 * aa), (1.0 - antibody) * (b + 2.0 * bb)
        return [
            100.0 * (ab + 2.0 * antibody * aa) / (ab + of_a),
            100.0 * (ab + 2.0 * (1.0 - antibody) * bb) / (ab + of_b),
            100.0 * (ab + of_a) / (2.0 * ab + of_a + of_b),
        ]

    amounts = {"A": 207.6 * ratio, "B": 207.6 * (1.0 - ratio), "Epo": 1.25e-7}
    initial = np.array([amounts.get(each, 0.0) for each in scheme.species])
    centres = np.zeros(len(scheme.constants))
    centres[scheme.constants.index("k_phos")] = -np.log10(amounts["Epo"] * 207.6)  # one per minute at the start
    published = np.log10([float(parameters[each]["nominalValue"]) for each in scheme.constants])
    return Experiment("STAT5", scheme, initial, times, values, observables, observe, 3, centres, (3.0, 1.0), published)


def predicted(experiment: Experiment, log_k: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """What is observed without noise, `(times, observables)`, by SciPy alone."""
    scheme, k = experiment.scheme, 10.0**log_k
    path, told = odeint(
        lambda t, y: scheme.rates_of_change(t, y, k),
        experiment.initial,
        experiment.times if times is None else times,
        Dfun=lambda t, y: scheme.derivatives(t, y, k)[0],
        tfirst=True,
        mxstep=100_000,
        full_output=True,
        **experiment.tolerances,
    )
    seen = np.stack(experiment.observe(list(path.T)), axis=-1)
    return seen if told["message"] == "Integration successful." else np.full_like(seen, np.nan)


def is_identified(experiment: Experiment, draws: np.ndarray) -> np.ndarray:
    """Whether the data tell a constant: its posterior is at most a third as wide as its prior.

    Args:
        experiment: The experiment.
        draws: Of the posterior, constants first: `(draws, numbers)`.
    """
    return draws.std(axis=0)[: len(experiment.centres)] < experiment.decades[0] / 3.0
