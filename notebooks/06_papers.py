# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Papers on self-distillation, beside the library
#
# What later papers prove about rounds of retraining is a line or two with sdntk: mixed labels, the
# best weight of a teacher, weights for each round, model collapse. `sdntk papers NAME` prints each
# paper's quantities with their tolerances; here are the ideas. All formulas were derived from the
# page [theory](#theory-section-8), since the papers themselves could not be read.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sdntk
from sdntk import datasets, filters, kernels, mixing
from sdntk.experiments import papers
from sdntk.reports import papers as report

for name, paper in papers.PAPERS.items():
    print(f"{name:17} {paper.claim}")

# %% [markdown]
# ## 1. True labels mixed in (Borup and Andersen 2021)
#
# With the share $\alpha$ of true labels in each round's targets, rounds of ridge fits tend to one
# ridge fit, with multiplier $c/\alpha$.

# %%
x, y = datasets.mobahi_example()
c, alpha = 1e-4, 0.3
run = sdntk.distill(
    kernels.cubic_spline(), x, y, multiplier=c, rounds=60, ground_truth_weight=alpha
)
limit = filters.ridge(run.eigenvalues, c / alpha)
away = np.abs(run.filters - limit[None]).max(axis=1)
print("distance from the limit, rounds 0, 5, 20, 59:", away[[0, 5, 20, 59]])
assert away[-1] < 1e-10

# %% [markdown]
# ## 2. A weight for each round (Pareek, Du and Oh 2024)
#
# Whatever share is mixed into whichever round, the last fit is a mixture $\sum_j w_j f_j$ of the
# plain rounds, and every mixture is reached: `per_round` turns weights into a chain.

# %%
plain = sdntk.distill(kernels.cubic_spline(), x, y, multiplier=c, rounds=3)
w = mixing.oracle(plain, datasets.mobahi_truth(x), 0.5**2)
xi = mixing.per_round(w)
chain = sdntk.distill(
    kernels.cubic_spline(), x, y, multiplier=c, rounds=3, ground_truth_weight=1 - xi
)
print("best weights", np.round(np.asarray(w), 3), " teachers' weights", np.round(xi, 3))
np.testing.assert_allclose(chain.fitted[-1], plain.mix(w).fitted, atol=1e-9)

# %% [markdown]
# On $s$ distinct eigenvalues, $s$ rounds reach the best filter of all, and $s - 1$ do not.

# %%
found = papers.study("pareek2024")
print(report.verdict(found))
report.plot("pareek2024", found)
plt.show()

# %% [markdown]
# ## 3. The best weight of a teacher (Das and Sanghavi 2023)
#
# For the error of the parameter in linear regression the best weight is negative where there is
# little noise (the student undoes shrinkage), and above 1 where there is much.

# %%
found = papers.study("das2023")
print(report.verdict(found))
report.plot("das2023", found)
plt.show()

# %% [markdown]
# Dang, Patil and Rinaldo (2026) have the best weight for the prediction risk where points and
# features are many alike; `sdntk papers dang2026` sets it beside simulations, in half a minute.
#
# ## 4. Model collapse (Dohmatob et al. 2024, Gerstgrasser et al. 2024)
#
# Trained on the last model's output with noise, a fit that keeps its labels has $t + 1$ times the
# first variance; where labels accumulate, at most $\pi^2/6$ times.

# %%
spectrum = sdntk.decompose(jnp.eye(5))
asked = {"multiplier": 1e-9, "rounds": 100, "noise": 1.0, "key": jax.random.key(0)}
for keep in ("replace", "accumulate"):
    variance = sdntk.retrain(spectrum, jnp.ones(5), keep=keep, **asked).variance
    print(f"{keep:10}", np.round(np.asarray(variance[jnp.array([0, 1, 9, 99])]), 4))
assert variance[-1] < np.pi**2 / 6

# %%
found = papers.study("gerstgrasser2024")
print(report.verdict(found))
report.plot("gerstgrasser2024", found)
plt.show()
