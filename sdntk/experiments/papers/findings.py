"""What a study of a paper finds: quantities of the paper beside the library's, with the tolerance
within which they must agree.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

#: "read": in the paper's words; "derived": from the formulas of docs/theory.md.
Source = Literal["read", "derived"]

#: Errors of a mean that a simulation may be off by.
STANDARD_ERRORS = 4


class Quantity(NamedTuple):
    """One quantity, twice.

    Attributes:
        quantity: in words.
        paper: its value by the paper.
        source: where that is from.
        library: its value by the library.
        tolerance: the largest difference that is allowed.
        tolerance_is: what that is made of.
    """

    quantity: str
    paper: float
    source: Source
    library: float
    tolerance: float
    tolerance_is: str

    @property
    def agrees(self) -> bool:
        """Whether both are the same within the tolerance."""
        return bool(abs(self.library - self.paper) <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What every study returns; each adds what its figure shows.

    Attributes:
        quantities: in the order of the table.
    """

    quantities: tuple[Quantity, ...]

    def to_frame(self) -> pd.DataFrame:
        """A row for each quantity, with the fields of :class:`Quantity` and agrees."""
        frame = pd.DataFrame(self.quantities, columns=pd.Index(Quantity._fields))
        return frame.assign(agrees=[row.agrees for row in self.quantities])


def stated(quantity: str, text: str, library: Any) -> Quantity:
    """A value stated with so many digits, all of which must come out."""
    mantissa, _, exponent = text.partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.5 * 10.0 ** (int(exponent or 0) - decimals) if "." in mantissa else 0.0
    # The half is inclusive up to rounding of the sum.
    return Quantity(quantity, float(text), "derived", float(library), half, "the digits stated")


def by_formula(quantity: str, paper: Any, library: Any, rtol: float = 1e-10) -> Quantity:
    """A value of a formula that the library computes in another way."""
    tolerance = rtol * max(abs(float(paper)), 1e-3)
    return Quantity(quantity, float(paper), "derived", float(library), tolerance, "rounding")


def holds(quantity: str, source: Source, library: Any) -> Quantity:
    """What holds (1) or does not (0)."""
    return Quantity(f"{quantity} (1: yes)", 1.0, source, float(bool(library)), 0.0, "exact")


def no_difference(quantity: str, differences: Any, tolerance: float) -> Quantity:
    """Two arrays that are the same: their largest difference is 0."""
    largest = float(np.max(np.abs(np.asarray(differences))))
    return Quantity(quantity, 0.0, "derived", largest, tolerance, "rounding")


def simulated(quantity: str, paper: Any, mean: Any, standard_error: Any) -> Quantity:
    """A mean over draws."""
    tolerance = STANDARD_ERRORS * float(standard_error)
    made_of = f"{STANDARD_ERRORS} std. errors"
    return Quantity(quantity, float(paper), "derived", float(mean), tolerance, made_of)


def mean_and_error(draws: Float[np.ndarray, "n ..."]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the first axis, and its standard error."""
    values = np.asarray(draws)
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5
    return np.asarray(values.mean(axis=0)), np.asarray(error)


def ratio_and_error(
    above: Float[np.ndarray, "n ..."], below: Float[np.ndarray, "n ..."]
) -> tuple[np.ndarray, np.ndarray]:
    """The ratio of two means over the first axis, and its standard error to first order."""
    ratio = np.asarray(above.mean(axis=0) / below.mean(axis=0))
    residual = (above - ratio * below) / below.mean(axis=0)
    return ratio, np.asarray(residual.std(axis=0, ddof=1) / len(above) ** 0.5)
