"""What a criterion cannot tell, said as a warning."""

from typing import Literal

from sdntk._arguments import format_number
from sdntk._warnings import warn

#: "gcv": generalised cross-validation; "sure": Stein's estimate, of noise of known variance;
#: "held_out": the mean squared error on validation points.
Criterion = Literal["gcv", "sure", "held_out"]
#: Below so many points GCV and SURE are said not to decide: their scatter is then as large as what
#: tells one level from another (docs/theory.md, section 8: tens of points).
FEW_POINTS = 50
#: Above this part of K, degrees of freedom bias GCV beyond use.
MANY_DEGREES = 0.5


class UndecidedWarning(UserWarning):
    """A criterion was asked for what it cannot tell; the message names the cause."""


def warn_if_undecided(
    criterion: Criterion, num_points: int, degrees_of_freedom: float, num_residuals: int | float
) -> None:
    """Warn of what GCV and SURE cannot tell.

    Args:
        criterion: by which a fit was chosen.
        num_points: K.
        degrees_of_freedom: of that fit, the largest of its outputs.
        num_residuals: K, or K Q of joint outputs.
    """
    if criterion == "held_out":
        return
    if num_points < FEW_POINTS:
        warn(
            f"{num_points} points are too few for {criterion} to tell levels and rounds apart: "
            "what it chooses may do worse than a single fit. Remedy: more points, or a level of "
            "your own.",
            UndecidedWarning,
        )
    elif criterion == "gcv" and degrees_of_freedom > MANY_DEGREES * num_residuals:
        warn(
            f"gcv chose a fit of {format_number(degrees_of_freedom)} degrees of freedom, of "
            f"{format_number(float(num_residuals))} residuals: it is biased there. Remedy: "
            'held-out points, criterion="held_out", or of an estimator folds, criterion=10.',
            UndecidedWarning,
        )
