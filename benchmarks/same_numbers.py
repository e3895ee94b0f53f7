"""Does another commit compute the same? Twenty chains, compared number by number.

    python benchmarks/same_numbers.py write A.npz          # in the one checkout
    python benchmarks/same_numbers.py write B.npz          # in the other
    python benchmarks/same_numbers.py compare A.npz B.npz

Only what all versions share is called, so that the file can be run in an old checkout. Allowed are
1e-12 of the largest value for dense and tridiagonal chains (for multipliers relative, times their
condition number n/(n - s)), 1e-5 for float32, and for Krylov chains their own bounds on both sides.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: Name: (method, kernel, outputs, "separate" or "joint", tolerance or multiplier, alpha, rounds).
CHAINS: dict[str, tuple[Any, str, int, Any, dict[str, float], float, int]] = {
    "dense, one output": ("dense", "matern", 1, "separate", {"tolerance": 0.05}, 0.0, 8),
    "dense, small tolerance": ("dense", "matern", 1, "separate", {"tolerance": 1e-4}, 0.0, 10),
    "dense, three outputs": ("dense", "matern", 3, "separate", {"tolerance": 0.1}, 0.0, 6),
    "dense, joint": ("dense", "matern", 3, "joint", {"tolerance": 0.1}, 0.0, 6),
    "dense, mixed": ("dense", "matern", 1, "separate", {"tolerance": 0.05}, 0.3, 7),
    "dense, multiplier": ("dense", "rbf", 2, "separate", {"multiplier": 0.01}, 0.0, 5),
    "dense, multiplier, mixed": ("dense", "rbf", 2, "joint", {"multiplier": 0.01}, 0.2, 5),
    "dense, null space": ("dense", "spline", 1, "separate", {"tolerance": 0.3}, 0.0, 6),
    "dense, neural": ("dense", "ntk", 2, "separate", {"tolerance": 0.2}, 0.0, 4),
    "tridiagonal, one output": ("tridiagonal", "matern", 1, "separate", {"tolerance": 0.05}, 0, 8),
    "tridiagonal, three": ("tridiagonal", "matern", 3, "separate", {"tolerance": 0.1}, 0.0, 6),
    "tridiagonal, joint": ("tridiagonal", "matern", 3, "joint", {"tolerance": 0.1}, 0.0, 6),
    "tridiagonal, mixed": ("tridiagonal", "matern", 1, "separate", {"tolerance": 0.05}, 0.3, 7),
    "krylov, one output": ("krylov", "matern", 1, "separate", {"tolerance": 0.05}, 0.0, 6),
    "krylov, three outputs": ("krylov", "matern", 3, "separate", {"tolerance": 0.1}, 0.0, 5),
    "krylov, joint": ("krylov", "matern", 3, "joint", {"tolerance": 0.1}, 0.0, 5),
    "krylov, mixed": ("krylov", "matern", 1, "separate", {"tolerance": 0.05}, 0.3, 5),
    "float32, one output": ("dense", "matern", 1, "separate", {"tolerance": 0.1}, 0.0, 6),
    "float32, three outputs": ("dense", "matern", 3, "separate", {"tolerance": 0.2}, 0.0, 4),
    "float32, joint, mixed": ("dense", "matern", 3, "joint", {"tolerance": 0.2}, 0.3, 4),
}


def _run(name: str) -> dict[str, np.ndarray]:
    import sdntk

    method, kernel_name, outputs, kind, level, alpha, rounds = CHAINS[name]
    rng = np.random.default_rng(7)
    size = 250
    x, new = rng.normal(size=(size, 3)), rng.normal(size=(20, 3))
    kernels: dict[str, Any] = {
        "matern": lambda: sdntk.kernels.matern(1.5, 2.0),
        "rbf": lambda: sdntk.kernels.rbf(1.5),
        "spline": sdntk.kernels.cubic_spline,
        "ntk": lambda: sdntk.kernels.ntk(sdntk.architectures.fully_connected(2)),
    }
    if kernel_name == "spline":
        x, new = rng.uniform(size=size), rng.uniform(size=20)
        x[[0, -1]] = 0, 1  # where every function is 0
    clean = np.sin((1 + np.arange(outputs)) * x.reshape(size, -1)[:, :1])
    y = clean + 0.3 * rng.normal(size=(size, outputs))
    labels = y[:, 0] if outputs == 1 else y
    if "tolerance" in level:
        level = {"tolerance": level["tolerance"] * float(np.mean(y**2))}
    options: dict[str, Any] = dict(level)
    run = sdntk.distill(
        kernels[kernel_name](), x, labels, **options, rounds=rounds, ground_truth_weight=alpha,
        outputs=kind, method=method,
    )  # fmt: skip
    found = {
        "multipliers": run.multipliers,
        "status": run.status,
        "fitted": run.fitted,
        "predictions": run.predict(new),
        "norms_of_targets": jnp.linalg.norm(run.targets, axis=1),
        "steps": getattr(run.spectrum, "steps", 0),
    }
    if run.error_bounds is not None:
        found["bound_multipliers"], found["bound_fitted"] = run.error_bounds
    return {key: np.asarray(value) for key, value in found.items()}


def write(path: str) -> None:
    """All chains' numbers, in a file."""
    found: dict[str, np.ndarray] = {}
    for name in CHAINS:
        with jax.enable_x64(not name.startswith("float32")):
            for key, value in _run(name).items():
                found[f"{name}/{key}"] = value
    import sdntk

    print(f"{len(CHAINS)} chains of sdntk {sdntk.__version__} in {sdntk.__file__}")
    np.savez(path, **found)  # type: ignore[arg-type]


def compare(before: str, after: str) -> bool:
    """A line for each chain; whether all are within what is allowed."""
    fine = True
    with np.load(before) as a, np.load(after) as b:
        for name in CHAINS:
            old, new = (
                {k.split("/")[1]: f[k] for k in f if k.startswith(name + "/")} for f in (a, b)
            )
            errors = _errors(name, old, new)
            fine &= all(error <= 1 for error in errors.values())
            shown = ", ".join(f"{key} {error:.2g}" for key, error in errors.items())
            print(f"{name:26}  {shown}  (parts of what is allowed)")
    print("all the same" if fine else "NOT the same")
    return fine


def _errors(name: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, float]:
    """Differences as parts of what is allowed; inf where states differ."""
    if not np.array_equal(old["status"], new["status"]):
        return {"status": np.inf}
    active = np.isfinite(old["multipliers"])
    c_error = np.abs(new["multipliers"] / old["multipliers"] - 1)[active]
    errors: dict[str, float] = {}
    if name.startswith("krylov"):
        allowed = (old["bound_multipliers"] + new["bound_multipliers"])[active]
        errors["c"] = float(np.max(c_error / np.maximum(allowed, 1e-12)))
        bounds = old["bound_fitted"] + new["bound_fitted"]
        distance = np.linalg.norm(new["fitted"] - old["fitted"], axis=1)
        size = np.linalg.norm(old["fitted"], axis=1)
        if bounds.ndim < size.ndim:  # joint: of all outputs together
            distance, size = (np.linalg.norm(v, axis=1) for v in (distance, size))
        errors["fitted"] = float(np.max(distance / np.maximum(bounds * size, 1e-12)))
        looks = max(4, 0.4 * int(old["steps"]))
        errors["steps"] = abs(int(new["steps"]) - int(old["steps"])) / looks
        return errors
    rtol = 1e-5 if name.startswith("float32") else 1e-12
    condition = np.ones(active.shape)
    if "tolerance" in CHAINS[name][4]:
        n = old["norms_of_targets"]
        if n.ndim > active.ndim:
            n = np.linalg.norm(n, axis=-1)
        residual = CHAINS[name][4]["tolerance"] ** 0.5 * n[0]
        condition = n / np.maximum(n - residual, np.maximum(1e-3 * n, np.finfo(n.dtype).tiny))
    errors["c"] = float(np.max(c_error / (rtol * condition[active])))
    for key in ("fitted", "predictions"):
        errors[key] = float(np.max(np.abs(new[key] - old[key])) / (rtol * np.max(np.abs(old[key]))))
    return errors


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    match sys.argv[1:]:
        case ["write", path]:
            write(path)
        case ["compare", before, after]:
            sys.exit(0 if compare(before, after) else 1)
        case _:
            sys.exit(__doc__)
