"""Bad input.

Must hold: a ValueError or TypeError that names the argument, what was wrong and what would be
right: wrong or mismatched shapes, nan or inf, K = 0 (K = 1 works), a non-symmetric or indefinite
Gram matrix, tolerance <= 0 or infeasible, negative rounds, both or neither of tolerance and
multiplier.
"""

import jax
import numpy as np
import pytest

import sdntk
from sdntk import kernels

pytestmark = pytest.mark.usefixtures("as_users_call")

X = np.linspace(0.1, 0.9, 5)
Y = np.array([1.0, -1.0, 0.5, 2.0, 0.0])
KERNEL = kernels.rbf(0.2)


def distill(kernel=KERNEL, x=X, y=Y, **options):
    if not {"tolerance", "multiplier"} & options.keys():
        options["tolerance"] = 0.1
    return sdntk.distill(kernel, x, y, **{"rounds": 2, **options})


with_nan, with_inf = Y.copy(), X.copy()
with_nan[1], with_inf[2] = np.nan, np.inf
indefinite = np.diag([1.0, -0.5, 2.0])
skewed = np.array([[1.0, 0.5], [0.4, 1.0]])

CASES = {
    "y too short": (
        lambda: distill(y=Y[:4]),
        ValueError,
        r"y must have shape \(5,\) or \(5, Q\).*\(4,\)",
    ),
    "y of three axes": (
        lambda: distill(y=np.ones((5, 1, 1))),
        ValueError,
        r"y must have shape \(5,\)",
    ),
    "y without outputs": (
        lambda: distill(y=np.ones((5, 0))),
        ValueError,
        r"y must have shape \(5,\)",
    ),
    "y a scalar": (lambda: distill(y=1.0), ValueError, r"y must have shape \(5,\)"),
    "y ragged": (
        lambda: distill(y=[[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]]),
        ValueError,
        "y must be an array of numbers",
    ),
    "y complex": (lambda: distill(y=Y + 1j), TypeError, "y must hold real numbers.*complex"),
    "y of strings": (lambda: distill(y=list("abcde")), TypeError, "y must hold real numbers"),
    "y with nan": (lambda: distill(y=with_nan), ValueError, "y must be finite"),
    "x with inf": (lambda: distill(x=with_inf), ValueError, "x must be finite"),
    "x a scalar": (lambda: distill(x=0.5), ValueError, "x must hold at least one point"),
    "no points": (
        lambda: distill(x=np.ones((0, 2)), y=np.ones(0)),
        ValueError,
        "x must hold at least one point.*K >= 1",
    ),
    "kernel no function": (lambda: distill(kernel=3), TypeError, "kernel"),
    "kernel of wrong shape": (
        lambda: distill(kernel=lambda a, _: np.ones(len(a))),
        ValueError,
        "kernel must return shape",
    ),
    "kernel with nan": (
        lambda: distill(kernel=lambda a, b: np.full((len(a), len(b)), np.nan)),
        ValueError,
        "the kernel's values must be finite",
    ),
    "kernel not symmetric": (
        lambda: distill(kernel=lambda *_: np.arange(25.0).reshape(5, 5)),
        ValueError,
        "kernel must be symmetric",
    ),
    "kernel indefinite": (
        lambda: distill(kernel=lambda *_: -np.eye(5)),
        ValueError,
        "G must be positive semi-definite",
    ),
    "tolerance zero": (lambda: distill(tolerance=0), ValueError, "tolerance must be positive"),
    "tolerance negative": (
        lambda: distill(tolerance=-1.0),
        ValueError,
        "tolerance must be positive",
    ),
    "tolerance nan": (lambda: distill(tolerance=np.nan), ValueError, "tolerance must be finite"),
    "tolerance a vector": (
        lambda: distill(tolerance=[0.1, 0.2]),
        ValueError,
        "tolerance must be a scalar",
    ),
    "tolerance for other outputs": (
        lambda: distill(y=np.ones((5, 3)), tolerance=[0.1, 0.2]),
        ValueError,
        r"tolerance must be a scalar or have shape \(3,\)",
    ),
    "tolerance infeasible": (
        lambda: distill(
            kernel=kernels.brownian_bridge(), x=np.array([0.0, 0.5, 0.7, 0.8, 1.0]), tolerance=0.1
        ),
        ValueError,
        "tolerance 0.1 is infeasible.*smallest feasible tolerance lies just above 0.2",
    ),
    "multiplier zero": (lambda: distill(multiplier=0.0), ValueError, "multiplier must be positive"),
    "both": (
        lambda: distill(tolerance=0.1, multiplier=0.1),
        ValueError,
        "exactly one of tolerance and multiplier.*both",
    ),
    "neither": (
        lambda: sdntk.distill(KERNEL, X, Y, rounds=1),
        ValueError,
        "exactly one of tolerance and mult.*neither",
    ),
    "rounds negative": (
        lambda: distill(rounds=-1),
        ValueError,
        "rounds must be at least 1; got -1",
    ),
    "rounds zero": (lambda: distill(rounds=0), ValueError, "rounds must be at least 1"),
    "rounds not an integer": (lambda: distill(rounds=2.5), TypeError, "rounds"),
    "rounds a boolean": (
        lambda: distill(rounds=True),
        TypeError,
        "rounds must be an integer, not a boolean",
    ),
    "outputs unknown": (lambda: distill(outputs="both"), (ValueError, TypeError), "outputs"),
    "ground truth weight": (
        lambda: distill(ground_truth_weight=1.5),
        ValueError,
        "ground_truth_weight must lie between 0",
    ),
    "ground truth weights": (
        lambda: distill(ground_truth_weight=[0.1]),
        ValueError,
        "ground_truth_weight must be a scalar",
    ),
    "rank tolerance": (
        lambda: distill(rank_tolerance=-1.0),
        ValueError,
        "rank_tolerance must be a scalar, zero or pos",
    ),
    "G not square": (
        lambda: sdntk.decompose(np.ones((2, 3))),
        ValueError,
        r"G must be a square matrix.*\(2, 3\)",
    ),
    "G empty": (
        lambda: sdntk.decompose(np.ones((0, 0))),
        ValueError,
        "G must be a square matrix.*K >= 1",
    ),
    "G with nan": (lambda: sdntk.decompose([[np.nan]]), ValueError, "G must be finite"),
    "G not symmetric": (
        lambda: sdntk.decompose(skewed),
        ValueError,
        "G must be symmetric.*0.1 where",
    ),
    "G indefinite": (
        lambda: sdntk.decompose(indefinite),
        ValueError,
        "G must be positive semi-definite.*-0.5.*2",
    ),
    "G negative": (
        lambda: sdntk.decompose(-np.eye(2)),
        ValueError,
        "G must be positive semi-definite",
    ),
    "no spectrum": (
        lambda: sdntk.distill_spectrum(np.eye(2), [1, 2], tolerance=1.0, rounds=1),
        TypeError,
        "spectrum",
    ),
    "gram of other points": (
        lambda: sdntk.gram(KERNEL, np.ones((2, 2)), np.ones((2, 3))),
        ValueError,
        "x and x2 must hold",
    ),
    "new points of another shape": (
        lambda: distill().predict(np.ones((2, 3))),
        ValueError,
        "points of one shape",
    ),
    "cross-Gram of another shape": (
        lambda: distill().predict_from(np.ones((2, 3))),
        ValueError,
        r"shape \(n, 5\)",
    ),
    "solve: shapes": (
        lambda: sdntk.solve_multiplier([1.0], [1.0, 2.0], 0.1),
        ValueError,
        "eigenvalues and z must both",
    ),
    "solve: negative": (
        lambda: sdntk.solve_multiplier([-1.0], [1.0], 0.1),
        ValueError,
        "eigenvalues must not be neg",
    ),
    "noise": (
        lambda: sdntk.datasets.mobahi_example(jax.random.key(0), noise=-1.0),
        ValueError,
        "noise",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_a_run_without_a_kernel_says_what_to_do():
    run = sdntk.distill_spectrum(sdntk.decompose(np.eye(2)), [1.0, 2.0], tolerance=0.1, rounds=1)
    with pytest.raises(
        ValueError, match=r"use run\.predict_from\(sdntk\.gram\(kernel, x_new, x\)\)"
    ):
        run.predict([1.0])


def test_rounding_is_not_indefinite_and_a_rank_tolerance_is_kept():
    assert int(sdntk.decompose(np.diag([1.0, -1e-17])).rank) == 1
    assert int(sdntk.decompose(np.diag([1.0, 1e-3, 1e-5])).rank) == 3
    assert int(sdntk.decompose(np.diag([1.0, 1e-3, 1e-5]), rank_tolerance=1e-4).rank) == 2
    zero = sdntk.decompose(np.zeros((3, 3)))
    assert int(zero.rank) == 0
    run = sdntk.distill_spectrum(zero, [1.0, 2.0, 2.0], tolerance=3.0, rounds=2)
    assert np.all(run.status == sdntk.Status.COLLAPSED)
