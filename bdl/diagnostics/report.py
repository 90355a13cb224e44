"""`HealthReport`: a verdict with everything it rests on, as text, page, JSON and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bdl.diagnostics.finding import Finding
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.record import plain
from bdl.diagnostics.remedies import Remedy, remedies_of
from bdl.report import Block, Figure, Page, Paragraph, Report, Row, Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANINGS = {
    "diverged": "The training produced numbers that are not finite.",
    "accounting_error": "The loss does not contain each layer's KL exactly once, so it is not an ELBO.",
    "mis_scaled_kl": "The KL has the wrong weight against the likelihood: the effective temperature is not 1.",
    "no_signal": "Nothing about the labels was found in the inputs, with or without a posterior.",
    "still_training": "The ELBO still rises: nothing can be said about the posterior yet.",
    "underfitting": "The posterior slid towards its prior, or stayed there, for that is cheap; predictions pay for it.",
    "collapsed": "The posterior equals the prior, and the predictions ignore the inputs.",
    "over_pruned": "Most units of a layer carry noise only, and it costs accuracy.",
    "variance_saturated": "The mean fits, but the weights vary so much that single functions are useless.",
    "scales_not_learned": "The posterior scales stayed where they started: the uncertainty is decorative.",
    "near_deterministic": "There is next to no uncertainty in the posterior: it is a point estimate in disguise.",
    "overfitting": "The training data are still being fitted better, while other data are predicted worse.",
    "healthy": "Nothing was found that these diagnostics look for.",
    "inconclusive": "What was measured does not decide between verdicts.",
}

STORY_MEANINGS = {
    **MEANINGS,
    "still_training": "The guide still moves: nothing can be said about the posterior yet.",
    "collapsed": "A local site's guide is its prior: its values say nothing about their rows.",
    "inconclusive": "What was measured does not say that the guide is the posterior.",
}
"""What the verdicts mean of a model of a story."""

_RATE = "What the posterior says, per example."
_RATE_OF_SCALES = (
    "What the posterior's scales say, per example. Its means are point estimates (variational EM) and pay a penalty at "
    "most."
)


@dataclass(frozen=True, eq=False, repr=False)
class HealthReport(Report):
    """The diagnosis of one training.

    Args:
        verdict: One of `bdl.diagnostics.VERDICTS`.
        confidence: `"certain"`, `"probable"` or `"possible"`.
        evidence: Sentences with numbers.
        remedies: What to do, the likeliest first.
        quantities: All that was measured.
        epochs: The recorded logs of each epoch.
        title: What it is about.

    Example:
    >>> report = HealthReport.of(Finding("mis_scaled_kl", "certain", ("T = 1000.",)), Quantities(temperature=1000.0))
    >>> print(str(report).splitlines()[0])
    mis_scaled_kl (certain): The KL has the wrong weight against the likelihood: the effective temperature is not 1.
    """

    verdict: str
    confidence: str
    evidence: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    quantities: Quantities
    epochs: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    title: str = "Training health"

    @classmethod
    def of(
        cls, finding: Finding, quantities: Quantities, epochs: Any = (), title: str = "Training health"
    ) -> HealthReport:
        """The report of a finding."""
        remedies = remedies_of(finding.verdict, quantities)
        return cls(finding.verdict, finding.confidence, finding.evidence, remedies, quantities, tuple(epochs), title)

    def __str__(self) -> str:
        """Verdict, evidence and remedies in plain text."""
        lines = [self._summary]
        lines += [f"  - {sentence}" for sentence in self.evidence]
        for number, remedy in enumerate(self.remedies, 1):
            lines.append(f"  {number}. Try {remedy.name}: {remedy.code} [{remedy.source}]")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python numbers, lists and dicts."""
        return {
            "verdict": self.verdict,
            "confidence": self.confidence,
            "evidence": list(self.evidence),
            "remedies": [
                {"name": remedy.name, "why": remedy.why, "source": remedy.source, "code": remedy.code}
                for remedy in self.remedies
            ],
            "quantities": plain(self.quantities.to_dict()),
        }

    def glance(self) -> list[Paragraph | Table]:
        """The verdict and its evidence."""
        return [Paragraph(self._summary), *map(Paragraph, self.evidence)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the recorded curves: NLL, KL / N, -ELBO and accuracy, epoch by epoch.

        Raises:
            ValueError: if there is no record of at least one epoch.
        """
        from bdl.plots.health import health_curves

        return health_curves(self.epochs, self.quantities.num_examples, ax)

    def page(self, title: str | None = None) -> Page:
        """The page with all that was measured.

        Args:
            title: Its heading; None for the report's own.
        """
        sections = [Section("Evidence", [Paragraph(sentence) for sentence in self.evidence])]
        if self.epochs:
            sections.append(Section("The training", self._figure()))
        sections.append(Section("What was measured", self._tables()))
        if self.remedies:
            rows = [Row(remedy.name, [remedy.source], f"{remedy.code}. {remedy.why}") for remedy in self.remedies]
            sections.append(Section("What to do", [Table(["source"], rows, "The likeliest first.")]))
        return Page(title or self.title, self._summary, sections, "Made by bdl.diagnostics.")

    @property
    def _summary(self) -> str:
        meanings = MEANINGS if self.quantities.story is None else STORY_MEANINGS
        return f"{self.verdict} ({self.confidence}): {meanings[self.verdict]}"

    def _figure(self) -> list[Block]:
        try:
            self.plot()
        except ValueError as error:
            return [Paragraph(str(error))]
        has_accuracy = any(entry.get("val_accuracy") is not None for entry in self.epochs)
        caption = f"NLL, KL / N and their sum, in nats per example{'; accuracy above' if has_accuracy else ''}."
        return [Figure(self.plot, caption, _curves_in_words(self.epochs))]

    def _tables(self) -> list[Block]:
        q = self.quantities
        rows = [
            _row("Effective temperature T", q.temperature, "Measured from the compiled loss; Bayes is 1."),
            _row("T so far", q.present_temperature, "Of the model as it stands; a warm-up raises it."),
            _row("R = KL / N [nats]", q.rate, _RATE_OF_SCALES if q.has_fitted_means else _RATE),
            _row("NLL of the prior [nats]", q.nll_prior, "Of networks drawn from the prior."),
            _row("Function signal", q.function_signal, "How predictions vary with x, against labels."),
            _row("Function variance", q.function_variance, "Against that of the prior's functions."),
        ]
        for name, fit in (("Training", q.train), ("Validation", q.validation), ("Twin", q.twin)):
            if fit is not None:
                rows.append(_row(f"{name}: data gain G", fit.gain, f"± {fit.gain_error:.3g}; 0 has learned nothing."))
                rows.append(_row(f"{name}: NLL [nats]", fit.nll_bma, f"A model that ignores x: {fit.nll_null:.3f}."))
                rows.append(
                    _row(f"{name}: accuracy", fit.accuracy, "Share of right labels; of targets, of explained variance.")
                )
        for share, accuracy in (q.pruned_accuracy or {}).items():
            rows.append(
                _row(f"Accuracy without {share} of the weights", accuracy, "Those of least |mean| / scale, zeroed.")
            )
        if q.gradient_noise is not None:
            noise, size = q.gradient_noise, q.gradient_noise.batch_size
            rows += [
                _row("Gradient: signal", noise.signal, f"Squared norm, ± {noise.signal_error:.2g}."),
                _row("Gradient: noise of the data", noise.data, f"In batches of {size}, ± {noise.data_error:.2g}."),
                _row("Gradient: noise of the draw", noise.draw, f"Of any batch size, ± {noise.draw_error:.2g}."),
            ]
        if q.story is not None:
            rows += [
                _row("k-hat", q.story.k_hat, "Tail of the importance weights; below 0.7 they correct the guide."),
                _row("R-hat of the iterates", q.story.r_hat, "Of the guides of global sites; at rest below 1.1."),
                _row("Moved [sds]", q.story.moved, "Between the last two quarters of the epochs, at most."),
            ]
        blocks: list[Block] = [Table(["value"], [row for row in rows if row is not None])]
        if q.story is not None and q.story.sites:
            sites = [Row(site.name, [site.kind, site.guide or "none", _cell(site.kl)]) for site in q.story.sites]
            blocks.append(Table(["kind", "guide", "KL [nats]"], sites, "Of a local site for each row."))
        if q.refits:
            refits = [Row(each.what, [_cell(each.elbo), _cell(each.elbo_error)]) for each in q.refits]
            blocks.append(
                Table(["ELBO [nats]", "error"], refits, "Per example at T = 1, after a short refit with this.")
            )
        if q.layers:
            names = ("kl", "prior_matched", "signal_to_noise", "noise_cost", "stuck", "active_units", "gradient_ratio")
            layers = [Row(part.name, [_cell(getattr(part, name)) for name in names]) for part in q.layers]
            columns = [
                "KL [nats]",
                "at prior",
                "|mean| / scale",
                "noise costs [nats]",
                "stuck",
                "active",
                "KL/NLL gradient",
            ]
            blocks.append(Table(columns, layers, "Weight-space figures inform; they alone are no alarm."))
        return blocks


def comparison(reports: dict[str, HealthReport]) -> Page:
    """Several runs side by side."""
    names = list(reports)
    rows = [
        Row("verdict", [f"{reports[name].verdict} ({reports[name].confidence})" for name in names]),
        Row("T", [_cell(reports[name].quantities.temperature) for name in names]),
        Row("R = KL / N [nats]", [_cell(reports[name].quantities.rate) for name in names]),
        *(
            Row(label, [_cell(getattr(reports[name].quantities.judged, key, None)) for name in names])
            for label, key in (("data gain G", "gain"), ("NLL [nats]", "nll_bma"), ("accuracy", "accuracy"))
        ),
        Row("epochs", [str(report.quantities.epoch or "none") for report in reports.values()]),
    ]
    summary = "\n".join(f"{name}: {report.verdict}." for name, report in reports.items())
    sections = [Section("Side by side", [Table(names, rows)])]
    for name, report in reports.items():
        sections += [Section(f"{name}: {section.title.lower()}", section.blocks) for section in report.page().sections]
    return Page("Training health", summary, sections, "Made by bdl.diagnostics.")


def _curves_in_words(epochs: Sequence[Mapping[str, Any]]) -> str:
    """What the curves show, for those who cannot see them: where each began and where it ended."""
    said = []
    for key, name in (("nll", "NLL"), ("val_nll", "validation NLL"), ("kl", "KL"), ("val_accuracy", "accuracy")):
        values = [entry[key] for entry in epochs if entry.get(key) is not None]
        said += [f"{name} from {values[0]:.4g} to {values[-1]:.4g}"] if values else []
    return f"Curves of {len(epochs)} recorded epochs: {', '.join(said) or 'the loss only'}."


def _row(name: str, value: float | None, meaning: str) -> Row | None:
    return None if value is None else Row(name, [_cell(value)], meaning)


def _cell(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
