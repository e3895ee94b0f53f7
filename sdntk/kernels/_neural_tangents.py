"""neural-tangents 0.6.5, its last release (December 2023), made to work on JAX 0.10 to 0.12 and
without TensorFlow.

The package imports names that have since left JAX's public modules. They are lent to it for the
duration of the import and taken back; afterwards JAX's modules are as they were. What the package
*calls* and JAX no longer has is replaced inside the package's own modules. No private name of JAX
is used. This is the only file that imports the package or knows its internals; if a new JAX breaks
the package, the place to mend it is here.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import math
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import ad

_NAME, _VERSION = "neural_tangents", "0.6.5"
_INSTALL = "`uv sync` has it; with plain pip: `pip install --no-deps neural-tangents==0.6.5`"

_lock = threading.RLock()
_repaired: ModuleType | None = None


def load_neural_tangents() -> Any:
    """The neural-tangents package, repaired; after it ``from neural_tangents import stax`` works
    anywhere in the process.

    All of ``neural_tangents`` is there except ``neural_tangents.experimental``, which needs
    TensorFlow: that part is not imported, and importing it by name does what it would without this
    library. Later calls return the same module. JAX's modules are the same before and after, also
    when the import fails; meanwhile other threads may see a few more names in ``jax.core``.

    Returns:
        The module ``neural_tangents`` (Novak et al. 2020, "Neural Tangents: Fast and Easy Infinite
        Neural Networks in Python", https://github.com/google/neural-tangents).

    Raises:
        ImportError: neural-tangents is missing, is of another version than 0.6.5, or does not
            import on this JAX.

    Example:
        >>> nt = load_neural_tangents()
        >>> from neural_tangents import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
        >>> kernel_fn(jnp.ones((1, 2)), None, "nngp").shape
        (1, 1)
    """
    global _repaired
    with _lock:
        if _repaired is None:
            _check_version()
            package = _import_package()
            _repair_empirical(importlib.import_module(f"{_NAME}._src.empirical"))
            _repair_predict(importlib.import_module(f"{_NAME}._src.predict"), package.predict)
            _repaired = package
        return _repaired


def structure_of(equation: Any, operand: int) -> Any:
    """The structure that neural-tangents knows of the derivative of a linear equation by one of its
    operands; None where it has no rule for it. Equal ones may be contracted with one another.
    """
    load_neural_tangents()
    rules = importlib.import_module(f"{_NAME}._src.utils.rules")
    known = rules.STRUCTURE_RULES.keys() & rules.JACOBIAN_RULES.keys()
    if equation.primitive not in known:
        return None
    operands = [variable.aval for variable in equation.invars]
    return rules.get_structure(eqn=equation, invals=operands, idx=operand, _s_rules=True)


def _check_version() -> None:
    try:
        version = importlib.metadata.version("neural-tangents")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"Neural kernels need the package neural-tangents, which is not installed: {_INSTALL}."
        ) from None
    if version != _VERSION:
        raise ImportError(
            f"Neural kernels need neural-tangents {_VERSION}, the version that sdntk repairs for "
            "today's JAX; "
            f"found {version}: {_INSTALL}."
        )


def _import_package() -> ModuleType:
    if _NAME in sys.modules:
        return _already_imported(sys.modules[_NAME])
    _forget()  # what an earlier import that failed left behind
    experimental = ModuleType(f"{_NAME}.experimental", "Empty: the real one needs TensorFlow.")
    try:
        with (
            _lent(vars(jax.core), {name: getattr(jax.extend.core, name) for name in _MOVED}),
            _lent(
                vars(ad), {"zeros_like_p": jax.extend.core.Primitive("zeros_like")}
            ),  # a key no program contains
            _lent(sys.modules, {"jax.util": _jax_util(), experimental.__name__: experimental}),
        ):
            package = importlib.import_module(_NAME)
    except BaseException as error:
        _forget()
        if not isinstance(error, Exception):
            raise
        raise ImportError(
            f"neural-tangents {_VERSION} does not import on JAX {jax.__version__}, though it "
            f"does on 0.10 to 0.12: {error}"
        ) from error
    del package.experimental
    return package


def _already_imported(package: Any) -> ModuleType:
    """Somebody else made it importable: theirs is kept and repaired, so that the process has one
    copy only.
    """
    if getattr(package, "__version__", None) != _VERSION:
        raise ImportError(
            f"Neural kernels need neural-tangents {_VERSION}, but another module of that name "
            f"has been imported: {package}. "
            "Call sdntk.kernels.load_neural_tangents() before it."
        )
    return package


#: What neural_tangents imports from jax.core and now lives in jax.extend.core.
_MOVED = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")


def _jax_util() -> ModuleType:
    """A stand-in for the module jax.util, which is gone, with the two functions that
    neural_tangents takes from it.
    """

    def safe_map(f: Callable[..., Any], *arguments: Any) -> list[Any]:
        return [f(*row) for row in zip(*arguments, strict=True)]

    def safe_zip(*arguments: Any) -> list[tuple[Any, ...]]:
        return list(zip(*arguments, strict=True))

    module = ModuleType("jax.util")
    vars(module).update(safe_map=safe_map, safe_zip=safe_zip)
    return module


@contextlib.contextmanager
def _lent(namespace: MutableMapping[str, Any], names: dict[str, Any]) -> Iterator[None]:
    """Names added to a namespace inside the block; after it those are gone, and what they hid is
    back.
    """
    before = {name: namespace[name] for name in names if name in namespace}
    try:
        namespace.update(names)
        yield
    finally:
        for name in names:
            namespace.pop(name, None)
        namespace.update(before)


def _forget() -> None:
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]


class _Shadow(SimpleNamespace):
    """A module as one module of the package is to see it: with some names replaced."""

    def __init__(self, module: Any, **replaced: Any):
        super().__init__(**replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _repair_empirical(empirical: Any) -> None:
    """Implementation 3 reads and transposes the linearised program itself, through functions that
    JAX has changed.
    """

    def get_primals_out_and_pullback(
        fn: Callable[..., Any],
        mode: Any,
        j_rules: bool,
        s_rules: bool,
        fwd: bool | None,
        *primals_in: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        primals, in_tree = jax.tree.flatten(primals_in)
        with jax.disable_jit():  # the rules know primitives, not calls
            out, linear = jax.linearize(
                lambda *flat: fn(*jax.tree.unflatten(in_tree, flat)), *primals
            )
            program = jax.make_jaxpr(linear)(*primals)

        def pullback(*cotangents: Any) -> Any:
            collected = empirical._backward_pass(
                program.jaxpr,
                mode=mode,
                consts=program.consts,
                primals_in=[ad.UndefinedPrimal(variable.aval) for variable in program.jaxpr.invars],
                cotangents_in=tuple(jax.tree.leaves(cotangents)),
                _j_rules=j_rules,
                _s_rules=s_rules,
                _fwd=fwd,
            )
            return jax.tree.unflatten(in_tree, collected)

        return out, pullback

    def eqn_vjp_fn(eqn: Any, cotangent: Any, *inputs: Any) -> Any:
        if eqn is None:  # the identity
            return (cotangent,)
        # JAX keeps its transposition rules in several tables, some of them private; its own
        # transposition knows them all.
        linear = [i for i, value in enumerate(inputs) if ad.is_undefined_primal(value)]
        transposed = [None] * len(inputs)
        if not isinstance(cotangent, ad.Zero):

            def apply(*values: Any) -> Any:
                filled = {**dict(enumerate(inputs)), **dict(zip(linear, values, strict=True))}
                return eqn.primitive.bind(*filled.values(), **eqn.params)

            for i, value in zip(
                linear,
                jax.linear_transpose(apply, *(inputs[i].aval for i in linear))(cotangent),
                strict=True,
            ):
                transposed[i] = value
        return transposed

    def get_flops(f: Callable[..., Any], optimize: bool, *args: Any, **kwargs: Any) -> float:
        lowered = jax.jit(f).lower(*args, **kwargs)
        analysis = (lowered.compile() if optimize else lowered).cost_analysis()
        if isinstance(analysis, (list, tuple)):
            analysis = analysis[0]
        return (analysis or {}).get("flops", math.inf)

    empirical._get_primals_out_and_pullback = get_primals_out_and_pullback
    empirical._eqn_vjp_fn = eqn_vjp_fn
    empirical._get_flops = get_flops
    empirical.print = lambda *_: None  # implementation 0 prints what it measures
    empirical.ad = _Shadow(
        ad,
        config=SimpleNamespace(jax_enable_checks=False),
        source_info_util=SimpleNamespace(transform_name_stack=lambda _: contextlib.nullcontext()),
    )
    # Asked of shapes without arrays too, which jnp.size and jnp.shape discourage.
    empirical.jnp = _Shadow(jnp, size=lambda x: math.prod(_shape(x)), shape=_shape)
    empirical.core = _Shadow(
        jax.core, Var=jax.extend.core.Var, DShapedArray=None
    )  # no array has a dynamic shape


def _shape(x: Any) -> tuple[int, ...]:
    return getattr(x, "shape", ())


def _repair_predict(predict: Any, public: Any) -> None:
    """What predict.py computes once and keeps must be computed outside any trace, as far as its
    inputs allow.
    """

    def lru_cache(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda function: functools.lru_cache(maxsize)(_untraced(function))

    ensemble = predict.gradient_descent_mse_ensemble

    @functools.wraps(ensemble)
    def gradient_descent_mse_ensemble(
        kernel_fn: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        return ensemble(_untraced(kernel_fn), *args, **kwargs)

    public.gradient_descent_mse_ensemble = predict.gradient_descent_mse_ensemble = (
        gradient_descent_mse_ensemble
    )
    predict.lru_cache = lru_cache
    predict.jax = _Shadow(jax, core=_Shadow(jax.core, eval_context=jax.ensure_compile_time_eval))
    predict._is_on_cpu = lambda _: (
        False
    )  # for the CPU it asks SciPy, by an argument gone there; eigvalsh of JAX does it all


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def evaluated(*args: Any, **kwargs: Any) -> Any:
        with jax.ensure_compile_time_eval():
            return function(*args, **kwargs)

    return evaluated
