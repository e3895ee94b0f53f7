"""Benchmarks: what they compare with does compute the same, and a figure that falls behind its goal
is told.

Their timings are no tests; they are kept in benchmarks/results/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

import sdntk
from benchmarks import __main__ as command
from benchmarks import chains, claims, core, plan, report, rounds


@pytest.mark.slow
def test_baselines_compute_the_same_chain():
    x, y = chains.problem(60)
    matrix = sdntk.gram(chains.KERNELS[chains.NTK], x)
    tolerance = 0.05 * float(jnp.mean(y**2))
    run = sdntk.distill_spectrum(sdntk.decompose(matrix), y, tolerance=tolerance, rounds=4)
    active = int(run.active_rounds)
    assert active >= 2
    for refit in (chains.cholesky_chain, lambda *a: core.refit_per_round(*a)[0]):
        multipliers = refit(np.asarray(matrix), np.asarray(y), tolerance, 4)
        np.testing.assert_allclose(multipliers, run.multipliers[:active], rtol=1e-5)
    fitted = chains.neural_tangents_refits(
        x, np.asarray(y), 60 * np.asarray(run.multipliers)[:active]
    )
    np.testing.assert_allclose(fitted, run.fitted[active - 1], atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "small"])
def test_loops_by_hand_train_the_same_network(network):
    with jax.enable_x64(False):
        ours, *others = [float(run()) for run in rounds.methods(network, steps=12).values()]
    assert others == pytest.approx([ours, ours], rel=1e-3)


@pytest.mark.parametrize("size", [500, 600, 1301, 4100])
def test_the_plan_counts_the_tiles_that_are_kept(size):
    x = np.random.default_rng(0).normal(size=(size, plan.DIMENSIONS))
    operator = sdntk.kernel_operator(sdntk.kernels.rbf(4.0), x, keep=True)
    kept = sum(stack.values.size for stack in operator.stacks())
    planned = plan.tile_entries(size, 1)  # all of the size of the largest
    assert kept <= planned <= 1.01 * kept


def test_the_plan_counts_one_device_as_what_it_divides():
    """Of many devices none does less than its share; what is not divided stays what it is."""
    known = plan.Constants(*(1e-9,) * len(plan.Constants._fields))
    for method in plan.METHODS.values():
        alone, *shared = (method(10**6, devices, known) for devices in (1, 8, 64, 1000))
        assert alone.communication == 0
        assert all(cost.seconds >= alone.seconds / 1000 for cost in shared)
        assert sorted(cost.seconds for cost in shared) == [c.seconds for c in reversed(shared)]
        assert all(cost.memory <= alone.memory for cost in shared)


def record(what, column, figure, goal):
    row = {"what": what, column: figure, "goal": goal, "seconds (median)": 1.0}
    return {"rows": [row, row | {"goal": ""}], "environment": {"date": "2026-01-01"}}


@pytest.mark.parametrize(
    ("figure", "goal", "what", "behind"),
    [
        (0.7, 0.6, "tridiagonal path", 0),
        (0.73, 0.6, "tridiagonal path", 1),
        (40, 39, "Krylov path", 0),
        (33, 39, "Krylov path", 0),
        (32, 39, "Krylov path", 1),
        (float("nan"), 39, "Krylov path", 1),
        (0.5, 0.7, "one product", 1),
    ],
)
def test_a_figure_that_falls_behind_by_more_than_a_fifth_is_told(figure, goal, what, behind):
    rows = claims.table({"chains": record(what, "figure", figure, goal)})
    assert len(rows) == 1
    assert len(claims.fallen_behind(rows)) == behind


def test_the_command_checks_what_was_kept(monkeypatch, tmp_path):
    app = Typer()
    app.command()(command.main)
    assert CliRunner().invoke(app, ["--kept"]).exit_code == 0
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "none at these sizes" in CliRunner().invoke(app, ["--kept", "--quick", "--check"]).output
    monkeypatch.setattr(
        claims, "kept", lambda **_: {"chains": record("one product", "figure", 0.5, 0.7)}
    )
    assert CliRunner().invoke(app, ["--kept"]).exit_code == 0
    checked = CliRunner().invoke(app, ["--kept", "--check"])
    assert checked.exit_code == 1
    assert jax.config.jax_enable_x64
    assert "one product: 0.5, goal at least 0.7" in checked.output
