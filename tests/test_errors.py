"""Bad input.

Must hold: a ValueError or TypeError that names the argument, what was wrong and what would be
right: wrong or mismatched shapes, nan or inf, K = 0 (K = 1 works), a non-symmetric or indefinite
Gram matrix, tolerance <= 0 or infeasible, negative rounds, both or neither of tolerance and
multiplier; masked arrays, words and dates for numbers, anything for a flag, a word or a path, and
objects of other libraries. (tests/attack/test_bad_calls.py tries many more.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sdntk
from sdntk import architectures, bounds, datasets, filters, kernels, networks

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
masked = np.ma.array(Y, mask=[False, True, False, False, False])
dates = np.array(["2020-01-01"] * 5, "datetime64[D]")


class WithGradient:
    """Like a torch tensor that requires a gradient: NumPy cannot have its numbers."""

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def train(**options):
    def build(rngs):
        shallow = architectures.fully_connected(1)
        return networks.FiniteWidth(shallow, (2,), width=4, num_outputs=1, rngs=rngs)

    options = {"training": sdntk.TrainingConfig(steps=1)} | options
    keys = jax.random.split(jax.random.key(0), 2)
    return sdntk.train(build, keys, np.eye(2), options.pop("targets", np.ones((2, 1))), **options)


def compare(**options):
    shallow, x, y = architectures.fully_connected(1), np.eye(2), np.ones((2, 1))
    return sdntk.compare_widths(shallow, x, y, x, y, **{"tolerance": 0.3, **options})


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
        lambda: distill(ground_truth_weight=jnp.nan),
        ValueError,
        "ground_truth_weight must be finite",
    ),
    "ground truth weights": (
        lambda: distill(ground_truth_weight=[[0.1]]),
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
    # taken in silence before
    "y masked": (lambda: distill(y=masked), ValueError, "y must have no masked entries"),
    "x of masked rows": (
        lambda: distill(x=[masked[:2]] * 5),
        ValueError,
        "x must have no masked entries",
    ),
    "G masked": (
        lambda: sdntk.decompose(np.ma.array(np.eye(2), mask=np.eye(2, dtype=bool))),
        ValueError,
        "G must have no masked entries",
    ),
    "rounds masked": (
        lambda: distill(rounds=np.ma.array(2, mask=True)),
        ValueError,
        "rounds must be an integer; it is masked",
    ),
    "classes masked": (
        lambda: datasets.one_hot(np.ma.array([0, 1], mask=[False, True]), 2),
        ValueError,
        "labels must have no masked entries",
    ),
    "images masked": (
        lambda: datasets.standardise(np.ma.masked_less(np.ones((2, 2, 2, 1)).cumsum(0), 2)),
        ValueError,
        "train must have no masked entries",
    ),
    "radius negative": (
        lambda: bounds.rademacher_bound([1.0], norm=-1),
        ValueError,
        "norm must be zero or positive",
    ),
    "equivalent negative": (
        lambda: bounds.local_rademacher_bound(-np.ones(3)),
        ValueError,
        "equivalent must be zero or positive",
    ),
    "multipliers words": (
        lambda: bounds.equivalent_eigenvalues([1.0], ["1.5"]),
        TypeError,
        "multipliers must hold real numbers",
    ),
    "multipliers dates": (
        lambda: bounds.equivalent_eigenvalues([1.0], dates),
        TypeError,
        "multipliers must hold real numbers",
    ),
    "rounds of an index negative": (
        lambda: bounds.sparsity_index([1.0, 2.0], [1.0, 2.0], 0.5, t=-1),
        ValueError,
        "t must be a scalar, zero or positive",
    ),
    "filter of negative eigenvalues": (
        lambda: filters.ridge([-1.0], 0.5),
        ValueError,
        "eigenvalues must be zero or positive",
    ),
    "filter with a negative multiplier": (
        lambda: filters.ridge([1.0], -0.5),
        ValueError,
        "multiplier must be positive",
    ),
    "filter mixed by infinity": (
        lambda: filters.mix([1.0], jnp.inf),
        ValueError,
        "ground_truth_weight must be finite",
    ),
    "filter mixed by several": (
        lambda: filters.mix([1.0], [1.5]),
        ValueError,
        "ground_truth_weight must be a scalar",
    ),
    "a weight for each eigenvalue": (
        lambda: filters.distillation(jnp.ones(3), jnp.ones(2), jnp.full(3, 0.5)),
        ValueError,
        "ground_truth_weight must be a scalar",
    ),
    "time negative": (
        lambda: filters.gradient_flow([1.0], -1.0),
        ValueError,
        "time must be zero or positive",
    ),
    "nu a word": (lambda: kernels.matern("1.5"), TypeError, "nu must hold real numbers"),
    "nu huge": (lambda: kernels.matern(1e6 + 0.5), ValueError, "nu must be a half-integer.*80.5"),
    "order huge": (lambda: kernels.periodic_spline(500), ValueError, "order must be at most 80"),
    "weight_std bytes": (
        lambda: architectures.Dense(weight_std=b"12"),
        TypeError,
        "weight_std must hold real numbers",
    ),
    "no length scale": (lambda: kernels.rbf([]), ValueError, "length_scale must be a scalar or"),
    "length scale a boolean": (
        lambda: kernels.rbf(True),
        TypeError,
        "length_scale must be a number, not a boolean",
    ),
    "tolerance a boolean": (
        lambda: distill(tolerance=True),
        TypeError,
        "tolerance must be a number, not a boolean",
    ),
    "loss a word": (
        lambda: sdntk.TrainingConfig(loss="abc"),
        TypeError,
        "loss must be a function of outputs and targets",
    ),
    "centred a word": (
        lambda: sdntk.TrainingConfig(centred="no"),
        TypeError,
        "centred must be True or False",
    ),
    "keep a word": (
        lambda: sdntk.kernel_operator(KERNEL, X, keep="no"),
        TypeError,
        "keep must be True or False",
    ),
    "rtol of a dense run": (lambda: distill(rtol="abc"), TypeError, "rtol must hold real numbers"),
    "targets of another width": (
        lambda: train(targets=np.ones((2, 3))),
        ValueError,
        r"targets \(y\) must have shape \(2, 1\)",
    ),
    "dtype an array": (
        lambda: datasets.one_hot([0, 1], 2, dtype=np.ones(3)),
        TypeError,
        "dtype must be a floating-point dtype",
    ),
    # errors of other libraries before
    "no operator": (
        lambda: sdntk.krylov(np.eye(5), Y, tolerance=0.1, rounds=1),
        TypeError,
        "operator must be what as_operator",
    ),
    "keys for numbers": (
        lambda: distill(y=jax.random.split(jax.random.key(0), 5)),
        TypeError,
        "y must hold real numbers",
    ),
    "a tensor with a gradient": (
        lambda: distill(y=WithGradient()),
        TypeError,
        "y must be an array of numbers.*requires grad",
    ),
    "a deleted array": (lambda: distill(y=deleted()), ValueError, "y must have values"),
    "rtol a list": (
        lambda: distill(method="krylov", rtol=[1, 2]),
        TypeError,
        r"rtol must be a Python number; got an array of shape \(2,\)",
    ),
    "outputs an array": (
        lambda: distill(outputs=np.array(["joint", "joint"])),
        ValueError,
        "outputs must be 'separate' or 'joint'",
    ),
    "method an array": (
        lambda: distill(method=np.array(["dense", "krylov"])),
        ValueError,
        "method must be one of",
    ),
    "kind an array": (
        lambda: datasets.label_noise([0, 1], 0.5, jax.random.key(0), 2, kind=np.array(["a", "b"])),
        ValueError,
        "kind must be 'symmetric' or 'asymmetric'",
    ),
    "flips a word": (
        lambda: datasets.label_noise(
            [0, 1], 0.5, jax.random.key(0), 2, kind="asymmetric", flips="x"
        ),
        TypeError,
        "flips must be a mapping",
    ),
    "activation a list": (
        lambda: architectures.fully_connected(activation=[]),
        ValueError,
        "activation must be one of 'relu'",
    ),
    "widths a number": (lambda: compare(widths=3), TypeError, "widths must be a sequence; got 3"),
    "until_loss a word": (
        lambda: sdntk.TrainingConfig(until_loss="abc"),
        TypeError,
        "until_loss must hold real numbers",
    ),
    "no training": (
        lambda: train(training=None),
        TypeError,
        "training must be an sdntk.TrainingConfig",
    ),
    "rounds beyond all": (
        lambda: distill(rounds=10**400),
        ValueError,
        "rounds must be at most 1000000; got a value of type int",
    ),
    "width beyond memory": (
        lambda: networks.FiniteWidth(
            architectures.fully_connected(2), (2,), width=2**30, num_outputs=1, rngs=nnx.Rngs(0)
        ),
        MemoryError,
        "width",
    ),
    "points beyond memory": (
        lambda: distill(x=np.broadcast_to(1.0, (2**20, 2**20))),
        MemoryError,
        "x, an array of shape",
    ),
    "path a number": (lambda: sdntk.gram(KERNEL, X, path=3), TypeError, "path must be a path"),
    "path empty": (lambda: sdntk.gram(KERNEL, X, path=""), ValueError, "path must name a file or"),
    "path to load a number": (lambda: sdntk.load(3), TypeError, "path must be a path"),
    "path to save a number": (lambda: distill().save(3), TypeError, "path must be a path"),
    "path to open a number": (lambda: sdntk.GramStore.open(3), TypeError, "path must be a path"),
    "folder a number": (lambda: datasets.cifar10(3), TypeError, "folder must be a path"),
    "out a number": (lambda: compare(out=3), TypeError, "out must be a path"),
}


def deleted():
    array = jnp.asarray(Y) + 1
    array.delete()
    return array


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
