"""Targets that mix the ground truth into a round's predictions: the only place that knows how.

Round t is trained on  alpha y_0 + (1 - alpha) f_{t-1}  (Borup and Andersen 2021). alpha = 0 is the
self-distillation of Mobahi et al. 2020.
"""

from typing import Any


def mix_targets(ground_truth: Any, predictions: Any, weight: Any) -> Any:
    """The targets alpha y_0 + (1 - alpha) f, for labels, rotated labels, or (with y_0 = 1) filters.

    Args:
        ground_truth: y_0.
        predictions: f, of a shape that broadcasts against it.
        weight: alpha, likewise.
    """
    return weight * ground_truth + (1 - weight) * predictions
