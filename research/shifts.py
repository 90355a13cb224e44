"""Images that are not what a network was trained on: rotated, corrupted by severity, and noise.

Images are `(n, rows, columns)` in [0, 1]. Severities run from 1 to 5.
"""

from __future__ import annotations

import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
DEGREES = (15, 30, 45, 60, 90)
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
BLUR = (0.02, 0.04, 0.06, 0.08, 0.1)  # standard deviation in units of the image's size
CONTRAST = (0.8, 0.6, 0.45, 0.3, 0.2)


def rotation(images: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """Turned by up to 90 degrees about the centre; linear interpolation."""
    from scipy.ndimage import rotate

    turned = rotate(images, DEGREES[severity - 1], axes=(2, 1), reshape=False, order=1)
    return np.clip(turned, 0.0, 1.0).astype("float32")


def gaussian_noise(images: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """Noise of standard deviation up to 0.5 on each pixel, clipped."""
    noise = np.random.default_rng(seed).normal(scale=NOISE[severity - 1], size=images.shape)
    return np.clip(images + noise, 0.0, 1.0).astype("float32")


def blur(images: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """Gaussian blur of up to a tenth of the image's size."""
    from scipy.ndimage import gaussian_filter

    width = BLUR[severity - 1] * images.shape[1]
    return gaussian_filter(images, (0, width, width)).astype("float32")


def low_contrast(images: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """Contrast down to a fifth, about the image's mean."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return (mean + CONTRAST[severity - 1] * (images - mean)).astype("float32")


SHIFTS = {"rotation": rotation, "noise": gaussian_noise, "blur": blur, "contrast": low_contrast}


def uniform_noise(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images of noise, as many and as large."""
    return np.random.default_rng(seed).uniform(size=images.shape).astype("float32")


def quarter_turn(images: np.ndarray) -> np.ndarray:
    """Turned by 90 degrees, exactly."""
    return np.ascontiguousarray(np.rot90(images, axes=(1, 2)))
