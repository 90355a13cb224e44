"""How well a colour is told from its ground: the contrast ratio of WCAG 2.2, from 1 to 21."""

from typing import Any

import matplotlib.colors
import numpy as np


def contrast(color: Any, ground: Any) -> float:
    lighter, darker = sorted((_luminance(color), _luminance(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: Any) -> float:
    channels = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
