"""Ensembles: several trainings of one kind of model, in a loop or on any executor, and the members that they leave.

What `fit` returns is a list of models, which `bdl.predict_distribution`, `bdl.evaluate` and `bdl.export_distribution`
take as one.

Source: Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles".
"""

from bdl.ensembles.fitting import fit
from bdl.ensembles.ray_executor import RayExecutor

__all__ = ["RayExecutor", "fit"]
