"""Bad calls of every public function: each argument in turn, and pairs of them, replaced by what it
was not made for.

Must hold: a call returns only if all its arguments were good for what they stand for. Otherwise it
raises ValueError or TypeError, in code of this library and not below it, with a message that names
the argument; before anything is computed, trained or allocated for it.

A new public function fails `test_every_public_function_has_a_good_call` until its good call is
listed in good_calls.py; one that takes what users do not make is listed in EXEMPT, with the reason.
"""

import inspect
import random
import re
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from attack.bad_values import POOL

import sdntk
from sdntk import (
    architectures,
    bounds,
    datasets,
    filters,
    kernels,
    losses,
    mixing,
    networks,
    optimisers,
    selection,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users_call")]

SEED = 17
PACKAGE = str(Path(sdntk.__file__).parent)
#: Of one call, but for what it compiles.
MOST_BYTES = 100e6
#: Seconds after which a call counts as one that does not end.
PATIENCE = 60

#: What has no good call, and why.
EXEMPT = {
    "made by this library, and by JAX's transformations of anything": {
        "Advice",
        "Distillation",
        "ErrorBounds",
        "GramStore",
        "KrylovSpectrum",
        "MixingWeights",
        "NystromSpectrum",
        "Multiplier",
        "Retraining",
        "SpectralFit",
        "Spectrum",
        "TrainingResult",
        "Tuning",
        "TridiagonalSpectrum",
    },
    "abstract": {"GramOperator", "GramOperator.__call__", "Kernel"},
    "Python's own checks": {"AccuracyError", "ArchitectureName", "Method", "PrecisionWarning"}
    | {"Status", "Stop", "UndecidedWarning"},
    "takes anything: fit looks at it": {"SelfDistilledRegressor", "SelfDistilledClassifier"},
    "checked by scikit-learn (tests/estimators)": {
        f"{estimator}.{method}"
        for estimator, own in (
            ("SelfDistilledRegressor", ()),
            (
                "SelfDistilledClassifier",
                ("decision_function", "predict_proba", "staged_predict_proba"),
            ),
        )
        for method in ("fit", "predict", "staged_predict", *own)
    },
    "handed by training to an optimiser": {"GaussNewton", "LeastSquares"},
    "between chains and spectra": {
        "AbstractSpectrum.check_chain",
        "AbstractSpectrum.without_null_space",
        "Eigenbasis.filters",
        "Eigenbasis.multiplier_path",
        "Eigenbasis.without_null_space",
        "AbstractSpectrum.error_bounds",
        "AbstractSpectrum.eigenvalues_for",
        "AbstractSpectrum.filters",
        "KrylovSpectrum.eigenvalues_for",
        "KrylovSpectrum.check_chain",
        "KrylovSpectrum.error_bounds",
        "TridiagonalSpectrum.multiplier_path",
    },
    "between chains and what chooses among them": {"Distillation.multiplier_responses", "Estimate"},
    "between a store and its readers": {"GramStore.read_stacks", "GramStore.read_tiles"},
    "behind the door that is __call__": {
        "Kernel.block",
        "Kernel.check",
        "Kernel.coordinates",
        "Kernel.diagonal",
        "Kernel.pair",
        "LibraryKernel.require_one_shape",
        "ResNet.features",
        "VGG.features",
    },
}


#: Good calls that need files, or draw millions of weights: tests of data sets, doctests.
SEEN_ELSEWHERE = {
    *("datasets.cifar10", "datasets.cifar100", "datasets.fashion_mnist", "datasets.from_npz"),
    *("networks.resnet18", "networks.resnet50", "networks.vgg16", "compare_widths"),
}


def qualified_name(called):
    is_function = hasattr(called, "__qualname__")
    return called.__qualname__ if is_function else type(called).__call__.__qualname__


def public_members():
    """Every public function, constructor and method that takes something."""
    modules = [architectures, bounds, datasets, filters, kernels, losses, mixing]
    modules += [networks, optimisers, selection]
    for module in [sdntk, *modules]:
        for name in getattr(module, "__all__", None) or list(vars(module)):
            member = getattr(module, name)
            home = getattr(member, "__module__", None) or ""
            own = (
                home.startswith("sdntk") if hasattr(module, "__all__") else home == module.__name__
            )
            if name.startswith("_") or not hasattr(member, "__qualname__") or not own:
                continue
            yield member
            if inspect.isclass(member):
                yield from own_methods(member)


def own_methods(cls):
    for name, method in inspect.getmembers(cls, callable):
        is_own = (getattr(method, "__module__", None) or "").startswith("sdntk")
        if is_own and (name == "__call__" or not name.startswith("_")):
            yield method


def argument_names(member):
    """The names of arguments; of a class those of its constructor, which a metaclass may hide."""
    try:
        parameters = inspect.signature(member.__init__ if inspect.isclass(member) else member)
    except ValueError:
        return set()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {p.name for p in parameters.parameters.values() if p.kind not in kinds}
    return named - {"self"}


def test_every_public_function_has_a_good_call(calls):
    known = {qualified_name(called) for called, *_ in calls.values()}
    exempt = set().union(*EXEMPT.values())
    members = {member.__qualname__: member for member in public_members()}
    missing = {
        name
        for name, member in members.items()
        if argument_names(member) and name not in known | exempt
    }
    assert not missing, "list a good call of each in CALLS"
    unknown = exempt - members.keys()
    assert not unknown, "EXEMPT lists what is not there"


def test_every_argument_has_a_kind(calls):
    for label, (called, arguments, *_) in calls.items():
        names = argument_names(called)
        assert names - {"tolerance", "multiplier"} <= set(arguments) <= names, label


@pytest.fixture(scope="module")
def calls():
    from attack.good_calls import CALLS

    return CALLS


@pytest.fixture
def _as_users_settings(tmp_path, monkeypatch, calls):
    """Ranks are promoted, as for users; tracebacks are whole; files lie in the test's folder."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):
        before = jax.config.jax_traceback_filtering
        jax.config.update("jax_traceback_filtering", "off")
        for label, file in (("Distillation.save", "run.npz"), ("gram", "store")):
            called, arguments = calls[label]
            called(**{name: a.good for name, a in arguments.items()} | {"path": file})
        yield
        jax.config.update("jax_traceback_filtering", before)


@pytest.mark.usefixtures("_as_users_settings")
def test_good_calls_are_good(calls):
    for label, (called, arguments, *_) in calls.items():
        if label in SEEN_ELSEWHERE:
            continue
        good = {name: argument.good for name, argument in arguments.items()}
        try:
            called(**good)
        except Exception as error:
            raise AssertionError(label) from error


@pytest.mark.filterwarnings("ignore::sdntk.PrecisionWarning")  # what tiny tolerances deserve
@pytest.mark.usefixtures("_as_users_settings")
def test_bad_calls_are_refused_by_name(size, score, calls):
    rng = random.Random(SEED)
    places = [(label, name) for label, (_, arguments, *_) in calls.items() for name in arguments]
    tried, faults = 0, []
    total = size(800, 10_000)
    while tried < total:
        rng.shuffle(places)
        for label, name in places[: total - tried]:
            called, arguments, *costly = calls[label]
            others = [other for other in arguments if other != name]
            pair = others and rng.random() < 0.25
            names = [name, rng.choice(others)] if pair else [name]
            replaced = {n: draw(rng, arguments[n], bad_only=bool(costly)) for n in names}
            fault = fault_of_call(called, arguments, replaced)
            what = f"{label}({', '.join(f'{n}={value}' for n, value in replaced.items())})"
            faults += [f"{what}: {fault}"] if fault else []
            tried += 1
    score("bad calls of public functions", tried, len(faults))
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])


def draw(rng, argument, *, bad_only):
    """The name of a value of the pool."""
    allowed = [
        value
        for value, make in POOL.items()
        if value not in argument.never and not (bad_only and argument.accepts(make()))
    ]
    return rng.choice(allowed)


def fault_of_call(called, arguments, replaced):
    """What was wrong with the answer to a call, some of whose arguments are values of the pool;
    None if nothing was.
    """
    fault, grown = answer_to_call(called, arguments, replaced)
    if grown > MOST_BYTES:  # without what was compiled: that is kept
        _, grown = answer_to_call(called, arguments, replaced)
    return fault or (f"took {grown / 1e6:.0f} MB" if grown > MOST_BYTES else None)


def answer_to_call(called, arguments, replaced):
    """What was wrong with it, and the bytes that it took."""
    values = {name: argument.good for name, argument in arguments.items()}
    values |= {name: POOL[value]() for name, value in replaced.items()}
    bad = [n for n, value in replaced.items() if not arguments[n].accepts(POOL[value]())]
    before = forget_peak_memory()
    try:
        with patience():
            answer = called(**values)
            if isinstance(answer, Iterator):  # it looks at its arguments when it is asked
                next(answer)
        fault = "returned" if bad else None
    except Exception as error:
        fault = fault_of_error(error, bad, [*arguments], [*replaced.values()])
    return fault, peak_memory() - before


def forget_peak_memory():
    """The bytes in use, from which the peak is counted anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory():
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


def fault_of_error(error, bad, names, replaced):
    """What is wrong with an error: its type, its origin, or that it names no argument."""
    text = f"{type(error).__name__}: {str(error)[:150]}"
    allowed = [ValueError, TypeError]
    allowed += [MemoryError] if any(value.startswith("huge") for value in replaced) else []
    allowed += [] if bad else [OSError]  # no such file
    if not isinstance(error, tuple(allowed)):
        return f"raw {text}"
    origin = traceback.extract_tb(error.__traceback__)[-1]
    if not origin.filename.startswith(PACKAGE):
        return f"from {origin.filename}:{origin.lineno}: {text}"
    expected = [ALIASES.get(name, name) for name in (names if len(bad) < len(replaced) else bad)]
    if isinstance(error, OSError) or any(re.search(rf"\b{n}\b", str(error)) for n in expected):
        return None
    return f"names none of {expected}: {text}"


#: Arguments that messages call otherwise.
ALIASES = {"name": "(name|activation)", "module_or_kernel": "(module_or_)?kernel"}


class Endless(BaseException):
    """A call did not end."""


class patience:
    """Ends a call that does not end."""

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.end)
        signal.alarm(PATIENCE)

    def __exit__(self, *_):
        signal.alarm(0)

    @staticmethod
    def end(*_):
        raise Endless
