"""Papers on self-distillation beside the library (sdntk papers NAME).

Must hold:
* mobahi2020: every digit that docs/theory.md, section 7, states (source: derived there, from labels
  that a follow-up paper published; tolerance: half a unit of the last digit), and what the paper
  says in words of its Fig. 2c (read): better, worse, zero.
* The other papers (derived from docs/theory.md, sections 5, 8, 10): every quantity agrees within
  the tolerance of its row, rounding (1e-10; 1e-6 where A is 1 - 1e-9), 4 standard errors of a
  simulation, or the tail of a series; and each formula once more here, by other means: a closed
  form, a limit, a minimisation, arithmetic of 50 digits.
* Dang et al.'s limits agree with simulations at n of 200 and 300 within 4 standard errors at every
  ridge, the isotropic design included; its closed form, and xi* = 0 at its best ridge, to rounding.
* one_shot's weight is xi* times (1 - df_1/n)/(1 - df_0/n): the inverse times it is within 10% of
  what leaving every point out gives, from which it is itself more than 30% off.
* Each command writes its table and its figure, with labelled axes; an unknown name is refused, and
  the known ones named.

A row that does not agree is seen: test_a_row_that_is_off_does_not_agree.
"""

import matplotlib.pyplot as plt
import mpmath
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from scipy.optimize import minimize_scalar

import sdntk
from sdntk import mixing
from sdntk.experiments import papers
from sdntk.experiments.papers import (
    borup2021,
    dang2026,
    das2023,
    findings,
    linear_model,
    mobahi2020,
    pareek2024,
)
from sdntk.experiments.papers.proportional_limit import Design, effective_ridge, limit_of
from sdntk.reports import papers as report

NAMES = list(papers.PAPERS)
#: Rows of each table, and how many of them were read in the paper.
ROWS = {
    "mobahi2020": (17, 6),
    "borup2021": (15, 0),
    "das2023": (10, 0),
    "pareek2024": (11, 0),
    "dang2026": (28, 0),
    "dohmatob2024": (16, 0),
    "gerstgrasser2024": (15, 0),
}


@pytest.fixture(scope="module")
def study():
    """Each paper's finding, computed once."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = papers.study(name)
        return found[name]

    return of


# ---- every paper ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow_cases
def test_every_quantity_agrees_and_every_axis_is_labelled(study, name):
    finding = study(name)
    off = [row for row in finding.quantities if not row.agrees]
    assert off == []
    frame = finding.to_frame()
    assert (len(frame), (frame["source"] == "read").sum()) == ROWS[name]
    assert frame["quantity"].is_unique
    assert set(frame["source"]) <= {"read", "derived"}
    assert np.isfinite(frame[["paper", "library", "tolerance"]].to_numpy()).all()
    agree = f"{len(frame)} of {len(frame)} quantities agree"
    assert report.verdict(finding).startswith(agree)

    figures = report.plot(name, finding)
    assert list(figures) == [name]
    for ax in figures[name].axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert ax.get_title()
        assert ax.get_legend() is not None
    plt.close("all")


def test_a_row_that_is_off_does_not_agree():
    rows = (
        findings.stated("digits", "2.71", 2.7151),
        findings.stated("a count", "5", 4),
        findings.by_formula("a formula", 1.0, 1 + 2e-10),
        findings.holds("a claim", "read", False),
        findings.no_difference("arrays", [0.0, -2e-9], 1e-9),
        findings.simulated("a mean", 1.0, 1.41, 0.1),
        findings.by_formula("nan", 1.0, float("nan")),
    )
    assert not any(row.agrees for row in rows)
    assert report.verdict(findings.Finding(rows)).startswith("0 of 7")
    right = findings.stated("digits", "2.71", 2.7149), findings.simulated("mean", 1.0, 1.39, 0.1)
    assert all(row.agrees for row in right)


def test_the_command_lists_names_runs_one_and_refuses_others(command, tmp_path):
    listed = command("papers")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in NAMES)
    assert not list(tmp_path.glob("papers"))

    done = command("papers", "borup2021", "--out", "found")
    assert done.returncode == 0, done.stderr
    assert "15 of 15 quantities agree" in done.stdout
    table = pd.read_csv(tmp_path / "found" / "borup2021.csv")
    assert table.columns.tolist() == [
        "quantity", "paper", "source", "library", "tolerance", "tolerance_is", "agrees"
    ]  # fmt: skip
    assert len(table) == 15
    assert table["agrees"].all()
    picture = image.imread(tmp_path / "found" / "borup2021.png")
    assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 50

    for wrong in ("junk", "", "mobahi"):
        done = command("papers", wrong)
        said = " ".join(done.stderr.replace("│", " ").split())
        assert done.returncode == 2
        assert f"{wrong!r} is none of" in said
        assert all(name in said for name in NAMES)


@pytest.mark.usefixtures("as_users_call")
def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of mobahi2020, .*; got 'junk'"):
        papers.study("junk")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_command_writes_its_table_and_figure(command, tmp_path, name):
    done = command("papers", name)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "papers"
    assert pd.read_csv(folder / f"{name}.csv")["agrees"].all()
    picture = image.imread(folder / f"{name}.png")
    assert np.unique(picture[..., :3].reshape(-1, 3), axis=0).shape[0] > 50


# ---- one by one ----


def test_mobahi_states_the_digits_of_section_7():
    assert mobahi2020.FLOOR == "0.04186106"
    assert mobahi2020.ACTIVE_ROUNDS == {0.042: 5, 0.045: 4}
    assert mobahi2020.MULTIPLIERS == ("2.70525e-06", "8.76276e-05", "2.73755e-04", "7.90018e-04")
    assert mobahi2020.TEST_ERRORS == ("0.15351", "0.06855", "0.12089", "0.30590")


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_borup_s_closed_form_is_the_recursion_in_50_digits(alpha):
    d = np.array([1e-7, 1e-4, 0.3])
    with mpmath.workdps(50):
        exact = [mpmath.mpf(float(v)) for v in d]
        a = [v / (mpmath.mpf(borup2021.MULTIPLIER) + v) for v in exact]
        filters = list(a)
        for t in range(12):
            found = borup2021.filter_of_round(d, alpha, t)
            np.testing.assert_allclose(found, [float(f) for f in filters], rtol=1e-13)
            filters = [
                v * (mpmath.mpf(alpha) + (1 - mpmath.mpf(alpha)) * f)
                for v, f in zip(a, filters, strict=True)
            ]


def test_das_is_the_minimum_of_the_expected_error(study):
    """E |theta(xi) - theta*|^2 = sum of (bias^2 + variance) of ((1 - xi) a + xi a^2)/s x,
    minimised numerically; and above 1 for large noise, negative for small.
    """
    finding = study("das2023")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(das2023.POINTS, das2023.FEATURES)) * np.geomspace(2, 0.2, 20)
    theta = rng.normal(size=das2023.FEATURES) / das2023.FEATURES**0.5
    _, s, v = np.linalg.svd(x, full_matrices=False)
    a, theta = s**2 / (s**2 + das2023.RIDGE), v @ theta
    for sigma in das2023.NOISES:

        def error(xi, sigma=sigma):
            f = (1 - xi) * a + xi * a**2
            return np.sum((1 - f) ** 2 * theta**2 + sigma**2 * f**2 / s**2)

        least = minimize_scalar(error, bracket=(-1, 2), options={"xtol": 1e-12}).x
        row = next(r for r in finding.quantities if r.quantity == f"xi*, sigma {sigma}")
        assert abs(row.paper - least) < 1e-6
    assert finding.best[0] < 0
    assert np.all(np.diff(finding.best) > 0)
    assert 1 < finding.best[-1] < finding.limit


@pytest.mark.slow
def test_pareek_s_rounds_reach_the_best_filter_and_no_fewer_do(study):
    finding = study("pareek2024")
    s = pareek2024.S
    np.testing.assert_allclose(finding.library, finding.formula[: s + 1], rtol=1e-9)
    np.testing.assert_allclose(finding.formula[s:], finding.best, rtol=1e-9)
    assert np.all(finding.library[:s] > 1.05 * finding.best)
    signal, noise = np.array(pareek2024.SIGNAL), pareek2024.NOISE**2
    np.testing.assert_allclose(finding.best, np.mean(signal * noise / (signal + noise)), rtol=1e-12)
    np.testing.assert_allclose(finding.targets, signal / (signal + noise), rtol=1e-12)


def test_effective_ridge_and_limits_of_an_isotropic_design():
    """kappa solves a quadratic equation; at lambda = gamma sigma^2/|beta|^2 the ridge is best:
    xi* = 0, R = sigma^2 (1 + gamma m), m the Stieltjes transform of Marchenko and Pastur's law at
    -lambda; and xi* = -(lambda/2) R'(lambda)/(R + R_pd - 2 C) at every ridge.
    """
    for gamma, points in ((0.5, 400), (2.0, 100)):
        beta = np.full(200, 1 / 200**0.5)
        design = Design("isotropic", points, np.ones(200), beta, 0.7)
        for ridge in (0.01, 0.3, 4.0):
            b = 1 - ridge - gamma
            root = (-b + (b**2 + 4 * ridge) ** 0.5) / 2
            assert abs(effective_ridge(design, ridge) / root - 1) < 1e-12
        best = gamma * 0.7**2
        m = (gamma - 1 - best + ((1 - gamma + best) ** 2 + 4 * gamma * best) ** 0.5) / (
            2 * gamma * best
        )
        risks = limit_of(design, best).risks
        assert abs(risks.teacher / (0.7**2 * (1 + gamma * m)) - 1) < 1e-12
        assert abs(risks.best_weight) < 1e-11


@pytest.mark.parametrize("index", [0, 1])
def test_dang_s_weight_is_the_slope_of_the_risk_and_gains_what_it_says(index):
    design = dang2026.designs()[index]
    for ridge in dang2026.RIDGES:
        step = 1e-4 * ridge
        above, here, below = (
            limit_of(design, r).risks for r in (ridge + step, ridge, ridge - step)
        )
        slope = (above.teacher - below.teacher) / (2 * step)
        curvature = here.teacher + here.student - 2 * here.cross
        assert abs(here.best_weight + ridge / 2 * slope / curvature) < 1e-5
        xi = here.best_weight
        mixed = (1 - xi) ** 2 * here.teacher + 2 * xi * (1 - xi) * here.cross + xi**2 * here.student
        assert abs(mixed / here.least - 1) < 1e-12
        assert here.least <= here.teacher


@pytest.mark.slow
def test_dang_s_limits_are_those_of_the_simulation_at_every_ridge(study):
    for simulation in study("dang2026").simulations:
        limits = [limit_of(simulation.design, ridge) for ridge in dang2026.RIDGES]
        for name in ("teacher", "cross", "student"):
            mean, error = findings.mean_and_error(getattr(simulation.risks, name))
            expected = np.array([getattr(limit.risks, name) for limit in limits])
            assert np.all(np.abs(mean - expected) < 4 * error), name
        xi, error = simulation.best_weight()
        assert np.all(np.abs(xi - [limit.risks.best_weight for limit in limits]) < 4 * error)


def test_one_shot_overshoots_by_a_ratio_of_degrees_of_freedom(study):
    """To leave out a point of teacher and student, whose residuals are then y - f_0 and y - f_1 of
    chains on the other points: their best weight, and rho times one_shot's, agree up to what one
    point's trace differs from the mean; that of one_shot itself is far off.
    """
    rng = np.random.default_rng(0)
    n, p, ridge = 120, 180, 0.05
    x = rng.normal(size=(n, p)) * np.geomspace(4, 0.04, p) ** 0.5
    y = x @ rng.normal(size=p) / p**0.5 + 0.5 * rng.normal(size=n)
    left_out = np.empty((2, n))
    for i in range(n):
        others = np.arange(n) != i
        gram, cross = x[others] @ x[others].T / n, x[i] @ x[others].T / n
        inverse = np.linalg.inv(gram + ridge * np.eye(n - 1))
        teacher = inverse @ y[others]
        left_out[:, i] = y[i] - cross @ teacher, y[i] - cross @ inverse @ (gram @ teacher)
    e, step = left_out[0], left_out[0] - left_out[1]
    exact = e @ step / (step @ step)

    spectrum = sdntk.decompose(sdntk.gram(lambda a, b: a @ b.T, x))
    run = sdntk.distill_spectrum(spectrum, y, multiplier=ridge, rounds=2)
    weight = float(mixing.one_shot(run).weights[1])
    rest = 1 - np.asarray(run.degrees_of_freedom) / n
    assert abs(weight * rest[0] / rest[1] / exact - 1) < 0.1
    assert weight / exact > 1.3
    for simulation in study("dang2026").simulations:
        limits = [limit_of(simulation.design, r).rho for r in dang2026.RIDGES]
        np.testing.assert_allclose(simulation.rho.mean(axis=0), limits, atol=0.02)


@pytest.mark.parametrize("keep", ["replace", "accumulate"])
def test_retrained_errors_are_those_of_a_simulation_by_hand(study, keep):
    """Least squares with ridge on labels drawn round by round, in NumPy; at A = 1 the variance is
    t + 1 times the first round's, or the partial sum of 1/j^2.
    """
    name = {"replace": "dohmatob2024", "accumulate": "gerstgrasser2024"}[keep]
    finding = study(name)
    course = next(n for n in finding.formula if "ridge 0" in n)
    model = linear_model.model()
    vectors, d = np.asarray(model.spectrum.eigenvectors), np.asarray(model.spectrum.eigenvalues)
    fit = (vectors * (d / (linear_model.RIDGE + d))) @ vectors.T
    rng = np.random.default_rng(5)
    shape = (linear_model.POINTS, 2000)
    fitted, labels, errors = model.signal[:, None], [], []
    for _ in range(6):
        labels.append(fitted + linear_model.NOISE * rng.normal(size=shape))
        fitted = fit @ (labels[-1] if keep == "replace" else np.mean(labels, axis=0))
        errors.append(np.mean((fitted - model.signal[:, None]) ** 2, axis=0))
    mean, error = findings.mean_and_error(np.array(errors).T)
    assert np.all(np.abs(mean - finding.formula[course][:6]) < 4 * error)
