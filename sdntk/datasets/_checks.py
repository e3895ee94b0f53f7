"""Checks that only data need: class labels. Like the draws they guard, they run on the host, in
NumPy.
"""

import numpy as np
from jaxtyping import Int

from sdntk._arguments import ArrayLike, as_real_array


def as_class_labels(
    name: str, value: ArrayLike, num_classes: int | None = None
) -> Int[np.ndarray, " K"]:
    """``value`` as a non-empty vector of classes 0 .. num_classes - 1 in its own integer dtype."""
    labels = np.asarray(as_real_array(name, value))
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be integers, the index of each point's class; its dtype is "
            f"{labels.dtype}."
        )
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            f"{name} must have shape (K,) with K >= 1, one class for each point; its shape is "
            f"{labels.shape}."
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        allowed = (
            "0, 1, 2, ..."
            if num_classes is None
            else f"from 0 to {num_classes - 1} for {num_classes} classes"
        )
        raise ValueError(f"{name} must be {allowed}; they reach from {lowest} to {highest}.")
    return labels
