"""Evaluations of a model with several outputs: which labels belong to which predictions, and one report of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bdl.evaluation.evaluation import Evaluation
from bdl.report import Page, Paragraph, Report, Table


@dataclass(frozen=True, eq=False, repr=False)
class OutputEvaluations(Report, Mapping[str, Evaluation]):
    """What `evaluate` found for several outputs: a mapping from their names to an `Evaluation` each.

    Scores are not averaged over outputs, for they have no unit in common.

    Attributes:
        outputs: An `Evaluation` for each output, by name.
    """

    outputs: dict[str, Evaluation]

    def __getitem__(self, output: str) -> Evaluation:
        return self.outputs[output]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain Python numbers, lists and dicts, by output."""
        return {"outputs": {name: evaluation.to_dict() for name, evaluation in self.outputs.items()}}

    def page(self, title: str | None = None) -> Page:
        """One page with the sections of every output.

        Args:
            title: Its heading; None asks how good the uncertainty is.
        """
        from bdl.evaluation.page import build_page_of_outputs

        return build_page_of_outputs(self.outputs, title)

    def glance(self) -> list[Paragraph | Table]:
        """Each output with the values of its scores."""
        return [
            block
            for name, evaluation in self.outputs.items()
            for block in (Paragraph(f"Output {name}"), *evaluation.glance())
        ]

    def __repr__(self) -> str:
        return "\n\n".join(f"Output {name}\n{evaluation!r}" for name, evaluation in self.outputs.items())

    def __str__(self) -> str:
        return "\n\n".join(f"Output {name}\n{evaluation}" for name, evaluation in self.outputs.items())


def by_output(values: Any, outputs: list[str], argument: str) -> dict[str, Any]:
    """What belongs to each output.

    Args:
        values: A mapping by the outputs' names, a list in their order, or None for all.
        outputs: Their names.
        argument: Name of the argument, for the message.

    Raises:
        ValueError: if one is missing, or there is one for no output.
    """
    if values is None:
        return dict.fromkeys(outputs)
    if isinstance(values, Mapping):
        missing = [name for name in outputs if name not in values]
        unknown = [name for name in values if name not in outputs]
        if missing or unknown:
            which = f"one for {missing[0]!r}" if missing else f"not for {unknown[0]!r}"
            raise ValueError(f"`{argument}` must have an entry for each of the outputs {outputs}, {which}. Rename it.")
        return dict(values)
    if isinstance(values, (list, tuple)) and len(values) == len(outputs):
        return dict(zip(outputs, values, strict=True))
    raise ValueError(
        f"`{argument}` must be a dict by the prediction's outputs, {outputs}, not a {type(values).__name__}. Give each "
        "output its own entry."
    )
