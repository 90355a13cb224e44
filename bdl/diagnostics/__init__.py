"""Is this network learning, or only shrinking to its prior? Training-health diagnostics."""

from bdl.diagnostics.callback import HealthWarning, TrainingHealth
from bdl.diagnostics.diagnose import diagnose, diagnose_record
from bdl.diagnostics.finding import HOPELESS, VERDICTS, Finding
from bdl.diagnostics.gradient_analysis import GradientNoise
from bdl.diagnostics.gradient_noise import gradient_noise
from bdl.diagnostics.quantities import Fit, LayerHealth, LocalLatents, Quantities, Refit, Trends
from bdl.diagnostics.record import RunRecord, read_record
from bdl.diagnostics.remedies import REMEDIES, Remedy
from bdl.diagnostics.report import HealthReport, comparison
from bdl.diagnostics.story_health import SiteHealth, StoryHealth
from bdl.diagnostics.thresholds import THRESHOLDS, Thresholds
from bdl.diagnostics.trends import measure_trends
from bdl.diagnostics.verdict import judge

__all__ = [
    "HOPELESS",
    "REMEDIES",
    "THRESHOLDS",
    "VERDICTS",
    "Finding",
    "Fit",
    "GradientNoise",
    "HealthReport",
    "HealthWarning",
    "LayerHealth",
    "LocalLatents",
    "Quantities",
    "Refit",
    "Remedy",
    "RunRecord",
    "SiteHealth",
    "StoryHealth",
    "Thresholds",
    "TrainingHealth",
    "Trends",
    "comparison",
    "diagnose",
    "diagnose_record",
    "gradient_noise",
    "judge",
    "measure_trends",
    "read_record",
]
