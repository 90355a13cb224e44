"""`bdl.evaluate`: how good is an uncertainty, whoever produced it, in one call, one table and one page."""

from bdl.evaluation.evaluate import evaluate
from bdl.evaluation.evaluation import MEANINGS, Evaluation
from bdl.evaluation.files import read_arrays, read_labels
from bdl.evaluation.outputs import OutputEvaluations
from bdl.evaluation.scores import ModelEvaluation, Surprise

__all__ = [
    "MEANINGS",
    "Evaluation",
    "ModelEvaluation",
    "OutputEvaluations",
    "Surprise",
    "evaluate",
    "read_arrays",
    "read_labels",
]
