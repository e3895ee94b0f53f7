"""A good call of every public function, with the kind of each of its arguments. Only imported when
it is wanted: to make all of these takes seconds.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from attack.bad_values import (
    Argument,
    any_shape,
    choice,
    classes,
    columns,
    count,
    counts,
    dtype,
    flag,
    function,
    function_kept,
    labels,
    mapping,
    multipliers,
    number,
    numbers_of_columns,
    one_key,
    only,
    optional,
    or_function,
    path,
    per_output,
    points,
    pytree,
    rows,
    some_keys,
    square,
    unit,
    with_axes,
    words,
)
from flax import nnx

import sdntk
from sdntk import architectures, bounds, datasets, filters, kernels, losses, mixing, networks
from sdntk.architectures import ArchitectureName
from sdntk.experiments.comparison import TO_THE_OPTIMUM

X, Y = np.array([0.2, 0.5, 0.9]), np.array([1.0, -1.0, 0.5])
KERNEL = kernels.rbf(0.3)
G = np.asarray(sdntk.gram(KERNEL, X))
SPECTRUM, TRIDIAGONAL = sdntk.decompose(G), sdntk.tridiagonalise(G)
CHAIN = {"tolerance": 0.3, "rounds": 2}
KRYLOV = sdntk.krylov(sdntk.as_operator(G), Y, **CHAIN)
NYSTROM = sdntk.nystrom(KERNEL, X, Y, landmarks=X)
IN_NYSTROM = np.array([0.0, 1.0, 2.0, 3.0])
RUN = sdntk.distill(KERNEL, X, Y, **CHAIN)
PLAIN = sdntk.distill(KERNEL, X, Y, multiplier=0.3, rounds=2)
RUN_BY_KRYLOV = sdntk.distill(KERNEL, X, Y, method="krylov", **CHAIN)
FIT = sdntk.fit_filter(SPECTRUM, Y, [0.5, 0.5, 0.5], kernel=KERNEL, x=X)
SHALLOW = architectures.fully_connected(1, activation="erf")
IMAGES, CLASSES = np.arange(32.0).reshape(4, 2, 2, 2) ** 2, np.array([0, 1, 1, 0])
X2, Y2 = np.eye(2), np.array([[1.0], [-1.0]])
KEYS = jax.random.split(jax.random.key(0), 2)
TRAINING = sdntk.TrainingConfig(steps=1)
TABLE = pd.DataFrame({"round": 0, "width": [4, 8], "gap_train": [0.4, 0.2], "gap_test": 0.1})
D, Z = np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])


def build(rngs):
    return networks.FiniteWidth(SHALLOW, (2,), width=4, num_outputs=1, rngs=rngs)


def tune_by_sure(noise_variance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdntk.UndecidedWarning)  # three points
        return sdntk.tune(
            SPECTRUM,
            Y,
            tolerances=[0.3],
            rounds=2,
            criterion="sure",
            noise_variance=noise_variance,
        )


def fit_regressor(
    kernel,
    length_scale,
    kernel_params,
    tolerance,
    relative,
    multiplier,
    rounds,
    weights,
    criterion,
    outputs,
    center,
    method,
):
    parameters = locals()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdntk.UndecidedWarning)  # three points
        sdntk.SelfDistilledRegressor(**parameters).fit(X[:, None], Y)


def linear(weights, x):
    return x @ weights


def nonnegative(a):
    return a >= 0


def real(good):
    return number(good, np.isfinite)


SMALL_NETWORK = networks.small_cnn(3, rngs=nnx.Rngs(0))
FINITE_WIDTH = build(nnx.Rngs(0))
MLP = networks.MLP(2, 1, widths=(4,), rngs=nnx.Rngs(0))
STRIDED = networks.StridedCNN((4, 4, 1), 3, channels=(2,), rngs=nnx.Rngs(0))
TRAINED = sdntk.train(build, KEYS, X2, Y2, TRAINING)

SCALE = with_axes(1.0, lambda a: a > 0, axes=(0, 1))
SPECTRA = only(SPECTRUM, type(SPECTRUM))
OUTPUTS = choice("separate", "joint")
#: One, or one for each later round: how many is none of its own business.
WEIGHTS = with_axes(0.5, lambda a: np.isfinite(a) & (a.dtype != bool), axes=(0, 1), least=0)
RNGS = only(nnx.Rngs(0), nnx.Rngs)
FOLDER = optional(path("nowhere"), "nowhere")
DOWNLOAD = flag(False, never=["true"])  # it would ask the network
ASKED = {
    "tolerance": per_output(0.3),
    "multiplier": optional(per_output(0.1)),
    "rounds": count(2, 1, 10**6),
    "ground_truth_weight": WEIGHTS,
    "outputs": OUTPUTS,
}
DECAY = {"eigenvalues": any_shape(D, nonnegative)}
FIT_OF = {
    "eigenvalues": with_axes(D, nonnegative),
    "z": rows(Z, (1,)),
    "tolerance": number(0.5),
}
STDS = {"weight_std": number(1.0), "bias_std": number(0.5, nonnegative)}
OUTPUTS_OF_NETWORKS = {"outputs": columns(X), "targets": columns(X)}
CLASSIFIER = {"num_classes": count(3, 1, 10**6), "rngs": RNGS, "dtype": dtype(jnp.float32)}
IN_BASIS = {"v": columns(Y)}
RESOLVENT = {"c": per_output(0.1), "u": columns(Y)}
TRAIN = {
    "build": function(build),
    "keys": some_keys(KEYS),
    "x": points(X2),
    "training": only(TRAINING, sdntk.TrainingConfig),
}
VALIDATION = optional(only((X2, Y2)), (X2, Y2))

#: Every public function: what is called, and its arguments in a good call, each with its kind.
#: ``costly``: only bad values are tried, so that nothing is trained or compiled anew.
CALLS: dict[str, tuple] = {
    "distill": (
        sdntk.distill,
        {"kernel": function(KERNEL), "x": points(X), "y": labels(Y), **ASKED}
        | {"rank_tolerance": optional(number(0.0, nonnegative))}
        | {"method": choice("dense", "tridiagonal", "krylov", "auto"), "rtol": number(1e-6)}
        | {"landmarks": only(None), "key": only(None)},
    ),
    "distill_spectrum": (sdntk.distill_spectrum, {"spectrum": SPECTRA, "y": labels(Y), **ASKED}),
    "advise": (
        sdntk.advise,
        {"module_or_kernel": function(KERNEL), "x": points(X), "y": labels(Y)}
        | {"validation": only((X, Y), ()), "rounds": count(2, 2, 10**6)}
        | {"tolerances": optional(with_axes([0.3], lambda a: (a > 0) & (a < 1)), [0.3])},
        "costly",
    ),
    "retrain": (
        sdntk.retrain,
        {"spectrum": SPECTRA, "signal": labels(Y), "multiplier": per_output(0.1)}
        | {"rounds": count(2, 1, 10**6), "noise": number(0.1, nonnegative)}
        | {"keep": choice("accumulate", "replace"), "real_share": unit(0.5)}
        | {"key": optional(one_key(KEYS[0]), KEYS[0]), "draws": count(2)}
        | {"points": optional(only(None)), "kernel": optional(only(None))},
    ),
    "retrain.points": (
        lambda points, kernel: sdntk.retrain(
            SPECTRUM,
            Y,
            multiplier=0.1,
            rounds=2,
            noise=0.1,
            key=KEYS[0],
            points=points,
            kernel=kernel,
        ),
        {"points": with_axes(np.stack([X, X]), axes=(2,)), "kernel": function(KERNEL)},
    ),
    "tune": (
        sdntk.tune,
        {"spectrum": SPECTRA, "y": labels(Y), "rounds": count(2, 1, 10**6)}
        | {"tolerances": with_axes([0.3], lambda a: a > 0), "multipliers": only(None)}
        | {"criterion": choice("held_out"), "noise_variance": only(None)}
        | {"kernel": function(KERNEL), "x": points(X), "validation": only((X, Y), ())}
        | {"ground_truth_weight": ASKED["ground_truth_weight"], "outputs": OUTPUTS}
        | {"relative": flag(False)},
        "costly",
    ),
    "SelfDistilledRegressor.fit": (
        fit_regressor,
        {
            "kernel": function("rbf"),
            "length_scale": number(0.3),
            "kernel_params": optional(only({}, dict), None),
            "tolerance": optional(number(0.3), "auto"),
            "relative": flag(True),
            "multiplier": optional(number(0.1)),
            "rounds": count(2, 1, 10**6),
            "weights": optional(with_axes([0.5, 0.5])),
            "criterion": Argument("auto", count(2, 2, 3).accepts),
            "outputs": OUTPUTS,
            "center": flag(True),
            "method": choice("auto", "dense", "tridiagonal"),
        },
        "costly",
    ),
    "tune.sure": (tune_by_sure, {"noise_variance": per_output(0.1)}, "costly"),
    "selection.degrees_of_freedom": (
        sdntk.selection.degrees_of_freedom,
        {"run": only(RUN, type(RUN)), "relative": flag(True), "key": only(None)}
        | {"probes": only(None)},
    ),
    "selection.degrees_of_freedom.krylov": (
        lambda key, probes: sdntk.selection.degrees_of_freedom(RUN_BY_KRYLOV, False, key, probes),
        {"key": one_key(KEYS[0]), "probes": count(2, 2, 10**6)},
        "costly",
    ),
    "selection.gcv": (
        sdntk.selection.gcv,
        {"run": only(RUN, type(RUN)), "degrees_of_freedom": optional(rows([1.0, 0.5], (1,)))},
    ),
    "selection.sure": (
        sdntk.selection.sure,
        {"run": only(RUN, type(RUN)), "noise_variance": per_output(0.1)}
        | {"degrees_of_freedom": optional(rows([1.0, 0.5], (1,)))},
    ),
    "selection.leave_one_out": (
        sdntk.selection.leave_one_out,
        {"spectrum": SPECTRA, "y": labels(Y), "multiplier": per_output(0.1)},
    ),
    "krylov": (
        sdntk.krylov,
        {"operator": only(sdntk.as_operator(G), sdntk.GramOperator), "y": labels(Y), **ASKED}
        | {"rtol": number(1e-6), "max_steps": optional(count(5), 5)},
    ),
    "nystrom": (
        sdntk.nystrom,
        {"kernel": function(KERNEL), "x": points(X), "y": labels(Y), "landmarks": count(2, 1, 3)}
        | {"key": optional(one_key(KEYS[0]), KEYS[0]), "selection": choice("uniform", "pivoted")}
        | {"path": only(None), "block_size": optional(count(2), 2)}
        | {"dtype": optional(dtype(jnp.float64), jnp.float64)},
    ),
    "fit_filter": (
        sdntk.fit_filter,
        {"spectrum": SPECTRA, "y": labels(Y), "filter": or_function(labels(np.full(3, 0.5)))}
        | {"kernel": optional(function_kept(KERNEL), KERNEL), "x": optional(points(X), X)},
    ),
    "decompose": (
        sdntk.decompose,
        {"G": square(G), "rank_tolerance": optional(number(0.0, nonnegative), 0.0)},
    ),
    "tridiagonalise": (sdntk.tridiagonalise, {"G": square(G)}),
    "as_operator": (sdntk.as_operator, {"G": square(G)}),
    "kernel_operator": (
        sdntk.kernel_operator,
        {"kernel": function(KERNEL), "x": points(X), "keep": optional(flag(True), True)}
        | {"block_size": optional(count(2), 2), "dtype": dtype(jnp.float32)},
    ),
    "gram": (
        sdntk.gram,
        {"kernel": function(KERNEL), "x": points(X), "x2": optional(points(X))}
        | {"path": optional(path("store")), "block_size": optional(count(2), 2)}
        | {"dtype": dtype(jnp.float64)},
    ),
    "solve_multiplier": (
        sdntk.solve_multiplier,
        FIT_OF | {"num_points": optional(count(3), 3)},
    ),
    "load": (sdntk.load, {"path": path("run.npz"), "kernel": optional(function_kept(None))}),
    "train": (
        sdntk.train,
        {**TRAIN, "targets": labels(Y2), "penalty": number(0.0, nonnegative)}
        | {"at_once": optional(count(1), 1), "validation": VALIDATION},
        "costly",
    ),
    "distill_networks": (
        sdntk.distill_networks,
        {**TRAIN, "y": labels(Y2), "rounds": count(2, 1, 10**6), "targets": choice("soft", "hard")}
        | {"ground_truth_weight": unit(0.0)}
        | {"penalties": optional(with_axes([0.0, 0.1], nonnegative), [0.0, 0.1])}
        | {"temperature": number(1.0, lambda a: a == 1)}  # of the squared error
        | {"at_once": optional(count(1), 1), "validation": VALIDATION},
        "costly",
    ),
    "compare_widths": (
        sdntk.compare_widths,
        {"architecture": only(SHALLOW, type(SHALLOW)), "x": points(X2), "y": labels(Y2)}
        | {"x_test": points(X2), "y_test": labels(Y2), "tolerance": number(0.3)}
        | {"rounds": count(1, 1, 10**6), "widths": counts([4]), "seeds": count(1, 1, 10**6)}
        | {"training": only(TO_THE_OPTIMUM, ()), "out": optional(path("out"))}
        | {"configuration": optional(mapping({}), {})},
        "costly",
    ),
    "gap_exponents": (
        sdntk.gap_exponents,
        {"comparison": only(TABLE, ()), "gap": choice("gap_train", "gap_test")},
    ),
    "TrainingConfig": (
        sdntk.TrainingConfig,
        {"loss": function_kept(losses.squared_error), "optimiser": only(optax.adam(0.1), ())}
        | {"steps": count(1), "batch_size": optional(count(1), 1), "check_every": count(1)}
        | {"until_loss": optional(number(1.0, nonnegative), 1.0), "centred": flag(False)}
        | {"until_stationary": optional(number(1.0, nonnegative), 1.0)}
        | {"augment": optional(function_kept(None)), "patience": optional(count(1), 1)},
    ),
    # kernels
    "kernels.rbf": (kernels.rbf, {"length_scale": SCALE}),
    "kernels.matern": (
        kernels.matern,
        {"nu": number(1.5, lambda a: a in np.arange(81) + 0.5), "length_scale": SCALE},
    ),
    "kernels.laplace": (kernels.laplace, {"length_scale": SCALE}),
    "kernels.polynomial": (
        kernels.polynomial,
        {"degree": count(2), "bias": with_axes(0.5, lambda a: a >= 0, axes=(0,))},
    ),
    "kernels.constant": (kernels.constant, {"value": with_axes(1.0, lambda a: a > 0, axes=(0,))}),
    "kernels.on_columns": (
        kernels.on_columns,
        {"kernel": or_function(function_kept(KERNEL)), "columns": numbers_of_columns([0, 1])},
    ),
    "kernels.periodic_spline": (kernels.periodic_spline, {"order": count(2, 1, 80)}),
    "kernels.ntk": (kernels.ntk, {"kernel_fn": function_kept(SHALLOW)}),
    "kernels.nngp": (kernels.nngp, {"kernel_fn": function_kept(SHALLOW)}),
    "kernels.empirical_ntk": (
        kernels.empirical_ntk,
        {"apply_fn": function_kept(linear), "params": pytree(np.ones((2, 3)))}
        | {"output": optional(count(0, 0), 0), "implementation": count(1, 0, 3)},
    ),
    "kernels.tangent_kernel": (
        kernels.tangent_kernel,
        {"apply_fn": function(linear), "params": pytree(np.ones((2, 2))), "x": points(X2)},
        "costly",
    ),
    # architectures
    "architectures.Dense": (architectures.Dense, STDS),
    "architectures.Conv": (architectures.Conv, {"filter_shape": counts((3, 3)), **STDS}),
    "architectures.Activation": (
        architectures.Activation,
        {"name": choice("relu", *architectures.ACTIVATIONS)},
    ),
    "architectures.AveragePool": (architectures.AveragePool, {"window": counts((2, 2))}),
    "architectures.Architecture": (architectures.Architecture, {"layers": only(SHALLOW.layers)}),
    "architectures.Architecture.from_config": (
        architectures.Architecture.from_config,
        {"config": only(SHALLOW.config())},
    ),
    "architectures.fully_connected": (
        architectures.fully_connected,
        {"depth": count(2, 0, 10_000), "activation": choice("erf"), **STDS},
    ),
    "architectures.convolutional": (
        architectures.convolutional,
        {"depth": count(2, 1, 10_000), "readout": choice("flatten", "pool"), **STDS}
        | {"activation": choice("erf"), "filter_shape": counts((3, 3))},
    ),
    "architectures.myrtle": (
        architectures.myrtle,
        {"depth": count(5, 5, 10), "activation": choice("erf"), **STDS},
    ),
    "architectures.named_architecture": (
        architectures.named_architecture,
        {"name": choice(ArchitectureName.MYRTLE), "depth": count(5), "activation": choice("erf")},
    ),
    # networks
    "networks.FiniteWidth": (
        networks.FiniteWidth,
        {"architecture": only(SHALLOW, type(SHALLOW)), "point_shape": counts((2,))}
        | {"width": count(4), "num_outputs": count(1), "rngs": RNGS},
    ),
    "networks.FiniteWidth.__call__": (FINITE_WIDTH.__call__, {"x": points(X2)}),
    "networks.MLP": (
        networks.MLP,
        {"num_inputs": count(2), "num_outputs": count(1), "widths": counts((4,)), "rngs": RNGS},
    ),
    "networks.MLP.__call__": (MLP.__call__, {"x": points(X2)}),
    "networks.StridedCNN": (
        networks.StridedCNN,
        {"shape": counts((4, 4, 1)), "num_outputs": count(3), "channels": counts((2,))}
        | {"rngs": RNGS},
        "costly",
    ),
    "networks.StridedCNN.__call__": (STRIDED.__call__, {"x": only(np.ones((1, 4, 4, 1)))}),
    "networks.VGG": (
        networks.VGG,
        {"stages": only(((4,), (4,))), **CLASSIFIER},
        "costly",
    ),
    "networks.ResNet": (
        networks.ResNet,
        {"blocks": only((1, 1, 1, 1)), "bottleneck": flag(False), **CLASSIFIER},
        "costly",
    ),
    "networks.VGG.__call__": (SMALL_NETWORK.__call__, {"x": only(np.ones((1, 8, 8, 3)))}),
    **{
        f"networks.{name}": (getattr(networks, name), CLASSIFIER, "costly")
        for name in ("resnet18", "resnet50", "small_cnn", "vgg16")
    },
    "ensemble.outputs": (
        TRAINED.ensemble.outputs,
        {"x": points(X2), "batch_size": count(2)},
        "costly",
    ),
    # datasets
    "datasets.mobahi_truth": (datasets.mobahi_truth, {"x": any_shape(X)}),
    "datasets.mobahi_example": (
        datasets.mobahi_example,
        {"key": optional(one_key(KEYS[0]), KEYS[0]), "noise": number(0.5)},
    ),
    "datasets.digits": (
        datasets.digits,
        {"key": optional(one_key(KEYS[0]), KEYS[0]), "num_test": count(3, 1, 1796)},
    ),
    "datasets.cifar10": (datasets.cifar10, {"folder": FOLDER, "download": DOWNLOAD}),
    "datasets.cifar100": (
        datasets.cifar100,
        {"folder": FOLDER, "coarse": flag(True), "download": DOWNLOAD},
    ),
    "datasets.fashion_mnist": (datasets.fashion_mnist, {"folder": FOLDER, "download": DOWNLOAD}),
    "datasets.from_npz": (datasets.from_npz, {"path": path("mine.npz")}),
    "datasets.standardise": (
        datasets.standardise,
        {"train": only(IMAGES), "unit_norm": flag(True), "dtype": dtype(np.float32)},
    ),
    "datasets.standardise.others": (
        lambda others: datasets.standardise(IMAGES, others),
        {"others": only(IMAGES)},
    ),
    "datasets.one_hot": (
        datasets.one_hot,
        {"labels": classes(CLASSES), "num_classes": count(2, 1, 10**6), "centred": flag(True)}
        | {"dtype": dtype(jnp.float32)},
    ),
    "datasets.label_noise": (
        datasets.label_noise,
        {"labels": classes(CLASSES), "rate": unit(0.5), "key": one_key(KEYS[0])}
        | {"num_classes": count(2, 2, 10**6), "kind": choice("asymmetric", "symmetric")}
        | {"flips": optional(mapping({0: 1}), {0: 1})},
    ),
    "datasets.balanced_subset": (
        datasets.balanced_subset,
        {"labels": classes(CLASSES), "size": count(2), "key": one_key(KEYS[0])},
    ),
    "datasets.balanced_subsets": (
        datasets.balanced_subsets,
        {"labels": classes(CLASSES), "sizes": counts([2, 2]), "key": one_key(KEYS[0])},
    ),
    "datasets.Dataset": (
        datasets.Dataset,
        {"name": choice("mine", *map(str, ("abc", "1.5", "", "a\0b", "red")))}
        | {"train_images": only(IMAGES.astype(np.uint8)), "train_labels": only(CLASSES)}
        | {"test_images": only(IMAGES.astype(np.uint8)), "test_labels": only(CLASSES)}
        | {"class_names": words(("a", "b"))},
    ),
    # losses
    **{
        f"losses.{loss.__name__}": (loss, OUTPUTS_OF_NETWORKS)
        for loss in (
            losses.squared_error,
            losses.squared_error_of_softmax,
            losses.brier_score,
            losses.soft_cross_entropy,
            losses.hard_cross_entropy,
        )
    },
    "losses.predictions": (
        losses.predictions,
        {"loss": function_kept(losses.squared_error), "outputs": columns(X, any_length=True)},
    ),
    # theory
    **{
        f"bounds.{name}": (getattr(bounds, name), FIT_OF | more)
        for name, more in {
            "multiplier_bounds": {},
            "norm_bounds": {"rounds": count(2, 1, 10**6)},
            "guaranteed_rounds": {"tight": flag(True)},
            "filter_ratio_bound": {"t": number(2, nonnegative)},
            "sparsity_index": {"t": optional(number(2, nonnegative), 2)},
        }.items()
    },
    "bounds.sparsity_limit": (bounds.sparsity_limit, {"eigenvalues": FIT_OF["eigenvalues"]}),
    "bounds.equivalent_eigenvalues": (
        bounds.equivalent_eigenvalues,
        {"eigenvalues": FIT_OF["eigenvalues"], "multipliers": multipliers(Z, [1], nan=True)},
    ),
    "bounds.rademacher_bound": (
        bounds.rademacher_bound,
        {"equivalent": with_axes(Z, nonnegative, range(1, 9)), "norm": any_shape(1.0, nonnegative)},
    ),
    "bounds.local_rademacher_bound": (
        bounds.local_rademacher_bound,
        {"equivalent": with_axes(Z, nonnegative, range(1, 9))},
    ),
    "filters.ridge": (filters.ridge, DECAY | {"multiplier": multipliers(0.5)}),
    "filters.mix": (filters.mix, {"filters": any_shape(D), "ground_truth_weight": real(0.5)}),
    "filters.distillation": (
        filters.distillation,
        {"eigenvalues": with_axes(D, nonnegative, (1, 2)), "ground_truth_weight": WEIGHTS}
        | {"multipliers": multipliers(Z, [1, 2])},
    ),
    "filters.iterated_tikhonov": (
        filters.iterated_tikhonov,
        DECAY | {"multiplier": any_shape(0.5, lambda a: a > 0), "count": any_shape(2, nonnegative)},
    ),
    "filters.truncated": (
        filters.truncated,
        {"eigenvalues": with_axes(D, nonnegative, (1, 2), least=0), "rank": count(2, 0)},
    ),
    "filters.gradient_descent": (
        filters.gradient_descent,
        DECAY | {"step": any_shape(0.5, lambda a: a > 0), "count": count(2, 0)},
    ),
    "filters.gradient_flow": (filters.gradient_flow, DECAY | {"time": any_shape(1.0, nonnegative)}),
    "filters.divided_by_eigenvalues": (
        filters.divided_by_eigenvalues,
        {"filter_": columns(D), "eigenvalues": with_axes(D, nonnegative)},
    ),
    "mixing.one_shot": (mixing.one_shot, {"run": only(PLAIN)}),
    "mixing.oracle": (
        mixing.oracle,
        {"run": only(PLAIN), "signal": rows(Y, (1,)), "noise_variance": number(0.1, nonnegative)},
    ),
    "mixing.held_out": (
        mixing.held_out,
        {"predictions": with_axes(np.array([Y, 0.5 * Y**2]), axes=(2, 3)), "y": rows(Y, (1,))},
    ),
    "mixing.per_round": (
        mixing.per_round,
        {"weights": with_axes([0.5, 0.5], lambda a: a.dtype != bool and abs(a.sum() - 1) < 1e-9)},
    ),
    # methods
    "Distillation.mix": (
        RUN.mix,
        {"weights": with_axes([2.0, -1.0], lambda a: a.shape == (2,) and a.dtype != bool)},
    ),
    "RBF.precision": (KERNEL.precision, {"x": points(X)}),
    "InfiniteWidth.precision": (kernels.ntk(SHALLOW).precision, {"x": points(X2)}, "costly"),
    "RBF.__call__": (KERNEL, {"x1": points(X), "x2": points(X)}),
    "InfiniteWidth.__call__": (
        kernels.ntk(SHALLOW),
        {"x1": points(X2), "x2": points(X2)},
        "costly",
    ),
    "GramOperator.__call__": (sdntk.as_operator(G), {"v": columns(Y[:, None])}),
    "GramStore.open": (sdntk.GramStore.open, {"path": path("store")}),
    **{
        f"{type(run).__name__}.{method.__name__}": (method, {name: kind})
        for run in (RUN, FIT)
        for method, name, kind in (
            (run.predict, "x_new", points(X)),
            (run.predict_from, "cross_gram", with_axes(G, axes=(2,))),
            (run.save, "path", path("run.npz")),
        )
    },
    **{
        f"{type(spectrum).__name__}.{method.__name__}": (method, arguments)
        for spectrum in (SPECTRUM, TRIDIAGONAL, KRYLOV)
        for method, arguments in (
            (spectrum.as_duals, {"z": columns(np.ones(len(spectrum.eigenvalues)))}),
            (spectrum.rotate, {"y": columns(Y)}),
            (spectrum.unrotate, {"z": columns(np.ones(len(spectrum.eigenvalues)))}),
            (spectrum.apply, {"v": columns(np.ones(len(spectrum.eigenvalues)))}),
            (spectrum.resolvent, RESOLVENT | {"u": columns(np.ones(len(spectrum.eigenvalues)))}),
            (spectrum.floor, {"y": labels(Y)}),
            (spectrum.save, {"path": path("spectrum.npz")}),
        )
    },
    "NystromSpectrum.rotate": (NYSTROM.rotate, {"y": columns(Y)}),
    "NystromSpectrum.unrotate": (NYSTROM.unrotate, {"z": columns(IN_NYSTROM)}),
    "NystromSpectrum.as_duals": (NYSTROM.as_duals, {"z": columns(IN_NYSTROM)}),
}
