"""What every trainer of bdl shares: data, number of examples, steps, the schedule of T, figures, and when to stop."""

from bdl.training.converged import Converged, Convergence

__all__ = ["Converged", "Convergence"]
