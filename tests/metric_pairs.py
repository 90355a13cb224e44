"""Keras metrics of class probabilities and the NumPy functions that they equal."""

from bdl import calibration, metrics

PAIRS = {
    metrics.NegativeLogLikelihood: calibration.negative_log_likelihood,
    metrics.BrierScore: calibration.brier_score,
    metrics.ExpectedCalibrationError: calibration.expected_calibration_error,
    metrics.MaximumCalibrationError: calibration.maximum_calibration_error,
    metrics.RootMeanSquareCalibrationError: calibration.root_mean_square_calibration_error,
    metrics.DebiasedCalibrationError: calibration.debiased_calibration_error,
    metrics.TopLabelCalibrationError: calibration.top_label_calibration_error,
    metrics.ClasswiseCalibrationError: calibration.classwise_calibration_error,
}
