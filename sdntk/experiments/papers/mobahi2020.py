"""Mobahi, Farajtabar and Bartlett 2020, section 4: the example that ``sdntk illustrate`` shows.

The paper's words are at hand, its numbers are not: those are stated by docs/theory.md, section 7.
"""

import dataclasses

import numpy as np

from sdntk.experiments.paper_example import Illustration, illustrate
from sdntk.experiments.papers.findings import Finding, Quantity, holds, stated
from sdntk.theory.multiplier import Status

#: docs/theory.md, section 7, with the digits it states.
FLOOR = "0.04186106"
MULTIPLIERS = "2.70525e-06", "8.76276e-05", "2.73755e-04", "7.90018e-04"
TEST_ERRORS = "0.15351", "0.06855", "0.12089", "0.30590"
ACTIVE_ROUNDS = {0.042: 5, 0.045: 4}


@dataclasses.dataclass(frozen=True)
class Chains(Finding):
    """The example at two tolerances.

    Attributes:
        examples: by tolerance.
    """

    examples: dict[float, Illustration]


def run() -> Chains:
    """Both chains, and every number that docs/theory.md, section 7, states of them."""
    examples = {tolerance: illustrate(tolerance, rounds=7) for tolerance in ACTIVE_ROUNDS}
    example = examples[0.045]
    floor = example.run.spectrum.floor(example.y)
    rows = [stated("smallest mean squared error (floor)", FLOOR, floor)]
    rows += [
        stated(f"active rounds at tolerance {tolerance}", str(active), _active(examples[tolerance]))
        for tolerance, active in ACTIVE_ROUNDS.items()
    ]
    for name, texts, values in (
        ("multiplier c_", MULTIPLIERS, np.asarray(example.run.multipliers)),
        ("error to the truth, round ", TEST_ERRORS, example.test_error),
    ):
        rows += [stated(f"{name}{t}, 0.045", x, values[t]) for t, x in enumerate(texts)]
    rows += [row for eps in examples for row in _in_words(eps, examples[eps])]
    return Chains(tuple(rows), examples)


def _active(example: Illustration) -> int:
    return int(example.run.active_rounds)


def _in_words(tolerance: float, example: Illustration) -> list[Quantity]:
    """What the paper says of its Fig. 2c: better at first, then underfitting; then collapse."""
    error, active = example.test_error, _active(example)
    best = int(error.argmin())
    is_zero = not np.asarray(example.run.fitted)[active:].any()
    collapsed = bool((np.asarray(example.run.status)[active:] == Status.COLLAPSED).all())
    return [
        holds(f"distillation improves the fit at first, {tolerance}", "read", best > 0),
        holds(
            f"further rounds underfit, {tolerance}",
            "read",
            bool((np.diff(error[best : active + 1]) > 0).all()),
        ),
        holds(f"then the solution collapses to zero, {tolerance}", "read", collapsed and is_zero),
    ]
