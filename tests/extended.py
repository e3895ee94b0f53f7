"""The recurrence once more: many chains at a time, in numbers of 80 bits, by another algorithm,
with what rounding may do to each number.

Chains start from the very floats that the library gets. The multiplier is found in mu = 1/c, by
Newton's iteration on the concave 1/|z/(1 + mu d)|, which converges from the left (Reinsch 1971).

Condition numbers are first-order: how many units of relative rounding, one in every number of every
round, a result may be off by. With r = q u the residual of targets u, q = c/(c + d), a = 1 - q,

    of c_t:    ( 2 s^2 + sum r^2 (e + a) ) / sum r^2 a,      e what a unit makes of the targets,
    of a fit:  its entries' e + q (that of c_t) + 1.
"""

from dataclasses import dataclass

import numpy as np

from sdntk import Status

EXTENDED = np.longdouble


@dataclass
class Chains:
    """B chains of T rounds on spectra of K eigenvalues; rounds that are not active have no
    multipliers.

    Attributes:
        status: a Status, shape (B, T).
        multipliers, c_condition: shape (B, T).
        filters: shape (B, T, K).
        fit_condition, loss_condition, norm_condition: shape (B, T).
        loss: |y_t - f_t|^2 in all, shape (B, T); squared_norm: f_t . a_t, likewise.
        margin: of the state, in units of rounding; below 1 it is undecidable, shape (B, T);
            infinite where it follows from the state before.
    """

    status: np.ndarray
    multipliers: np.ndarray
    c_condition: np.ndarray
    filters: np.ndarray
    fit_condition: np.ndarray
    loss: np.ndarray
    loss_condition: np.ndarray
    squared_norm: np.ndarray
    norm_condition: np.ndarray
    margin: np.ndarray


def chains(d, squares, s2, alpha, rounds, *, eps, multiplier=None):
    """Chains to a radius, or with a multiplier.

    Args:
        d: eigenvalues, shape (B, K).
        squares: z_0^2, of joint outputs their sum, shape (B, K).
        s2: K eps, shape (B,).
        alpha: any real numbers, shape (B,), or (B, T - 1), one for each later round.
        rounds: T.
        eps: the machine_eps of what is to be judged.
        multiplier: c, shape (B,), in place of s2.
    """
    d, squares, alpha = (np.asarray(v, EXTENDED) for v in (d, squares, alpha))
    alpha = np.broadcast_to(alpha.reshape(len(d), -1), (len(d), max(rounds - 1, 1)))
    # Weights with which no round wakes up after a collapse.
    final = np.all((alpha >= 0) & (alpha <= 1), axis=1) & np.all(np.diff(alpha) <= 0, axis=1)
    P, e = np.ones_like(d), np.zeros_like(d)  # filter of the targets, and what a unit does to it
    kept, found = d > 0, []
    ended = np.zeros(len(d), np.int32)
    slack = 4 * eps * (4 + np.sqrt(d.shape[1]))
    for t in range(rounds):
        w = P**2 * squares
        if multiplier is None:
            status, margin = _status(w, kept, s2, e, eps, slack)
            status, margin = np.where(ended, ended, status), np.where(ended, np.inf, margin)
            active = status == Status.ACTIVE
            c = _root(d, w, s2, active)
        else:
            status = np.zeros(len(d), np.int32)
            margin, active = np.full(len(d), np.inf), np.ones(len(d), bool)
            c = np.asarray(multiplier, EXTENDED)
        one = _round(d, w, c, e, s2, active, by_tolerance=multiplier is None)
        F = np.where(active[:, None], P * one["a"], 0)
        squared_norm = np.sum(np.where(kept, F**2 * squares / np.where(kept, d, 1), 0), axis=1)
        found.append(
            {
                "status": status,
                "margin": margin,
                "multipliers": np.where(active, c, np.nan),
                "filters": F,
                "squared_norm": squared_norm,
                **{name: v for name, v in one.items() if name not in ("a", "e")},
            }
        )
        weight = alpha[:, min(t, alpha.shape[1] - 1), None]
        following = weight + (1 - weight) * F
        share = np.divide((1 - weight) * F, following, where=following != 0, out=0 * F)
        share = np.abs(share)  # above 1 where the two parts cancel
        P, e = following, share * one["e"] + np.maximum(share, 1)
        ended = np.where((status == Status.INFEASIBLE) | (~active & final), status, ended)
    return Chains(**{name: np.stack([f[name] for f in found], 1) for name in found[0]})


def _status(w, kept, s2, e, eps, slack):
    """The state, and its margin in units of what rounding may do."""
    total, null = w.sum(axis=1), np.where(kept, 0, w).sum(axis=1)
    n, n0, s = np.sqrt(total), np.sqrt(null), np.sqrt(s2)
    doubt = slack + eps * np.sqrt((e**2 * w).sum(axis=1) / np.where(total > 0, total, 1)) * 4
    collapsed = n <= s
    infeasible = (~kept).any(axis=1) & (s <= n0)
    to_collapse = np.abs(n - s) / (doubt * s)
    to_floor = np.where((~kept).any(axis=1), np.abs(s - n0) / (doubt * np.maximum(n, s)), np.inf)
    status = np.where(infeasible, Status.INFEASIBLE, Status.ACTIVE)
    status = np.where(collapsed, Status.COLLAPSED, status).astype(np.int32)
    return status, np.where(collapsed, to_collapse, np.minimum(to_collapse, to_floor))


def _root(d, w, s2, active):
    """c with sum w (c/(c + d))^2 = s^2, for the chains that are active; 1 for the others."""
    rows, c = np.flatnonzero(active), np.ones(len(d), EXTENDED)
    d, w, s2 = d[rows], np.where(d[rows] > 0, w[rows], 0), (s2 - np.where(d > 0, 0, w).sum(1))[rows]
    n2 = w.sum(axis=1)
    # (n - s)/s = (n^2 - s^2)/(s (n + s)) at the left end.
    mu = (n2 - s2) / (np.sqrt(s2) * (np.sqrt(n2) + np.sqrt(s2))) / d.max(axis=1, initial=0)
    left = np.arange(len(rows))
    for _ in range(200):
        if not len(left):
            break
        p = 1 / (1 + mu[left, None] * d[left])
        wp2 = w[left] * p**2
        r2 = wp2.sum(axis=1)
        # r/s - 1, from the difference of squares.
        step = (r2 - s2[left]) / (s2[left] + np.sqrt(r2 * s2[left])) * r2
        step /= (wp2 * p * d[left]).sum(axis=1)
        mu[left] += step
        left = left[step > 8 * np.finfo(EXTENDED).eps * mu[left]]  # only rounding steps back
    assert not len(left), "the reference did not converge"
    c[rows] = 1 / mu
    return c


def _round(d, w, c, e, s2, active, *, by_tolerance):
    """The filter of a round, what a unit of rounding does to it, and its losses."""
    c = c[:, None]
    q = np.where(active[:, None], c / (c + d), 1)
    a = np.where(active[:, None], d / (c + d), 0)
    r2 = q**2 * w
    loss, slope = r2.sum(axis=1), (r2 * a).sum(axis=1)
    weighted = (r2 * e).sum(axis=1)
    of_c = np.ones_like(loss)
    if by_tolerance:
        of_c = 1 + (2 * s2 + weighted) / np.where(slope > 0, slope, 1)
        of_c = np.where(active & (slope > 0), of_c, 1)
    of_fit = e + q * of_c[:, None] + 1
    f2 = a**2 * w
    in_norm = np.where(d > 0, f2 / np.where(d > 0, d, 1), 0)
    return {
        "a": a,
        "e": of_fit,
        "c_condition": of_c,
        "fit_condition": _mean(of_fit, f2),
        "loss": loss,
        "loss_condition": 1 + 2 * _mean(e + a * of_c[:, None] + 1, r2),
        "norm_condition": 1 + _mean(of_fit, in_norm),
    }


def _mean(values, weights):
    """The root mean square of each row."""
    total = weights.sum(axis=1)
    return np.sqrt((values**2 * weights).sum(axis=1) / np.where(total > 0, total, 1))
