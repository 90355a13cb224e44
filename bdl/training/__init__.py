"""What every trainer of bdl shares: data, number of examples, steps, the schedule of T, figures, and when to stop."""

from bdl.training.adaptive_batch import AdaptiveBatch
from bdl.training.converged import Converged, Convergence

__all__ = ["AdaptiveBatch", "Converged", "Convergence"]
