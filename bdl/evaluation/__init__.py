"""`bdl.evaluate`: how good is an uncertainty, whoever produced it, in one call, one table and one page."""

from bdl.evaluation.evaluate import Evaluation, evaluate
from bdl.evaluation.files import read_arrays, read_labels
from bdl.evaluation.scores import ModelEvaluation, Surprise

__all__ = ["Evaluation", "ModelEvaluation", "Surprise", "evaluate", "read_arrays", "read_labels"]
