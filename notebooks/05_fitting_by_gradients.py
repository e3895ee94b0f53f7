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
# # A length scale and a tolerance, fitted by gradient descent through five rounds of distillation
#
# Every round of a chain depends on the kernel's length scale and on the tolerance, and so does the
# error on held-out points. sdntk differentiates all of it: Gram matrix, multipliers, five rounds,
# predictions. No eigenvector is differentiated, so the points may lie on a grid, where eigenvalues
# coincide and derivatives of `eigh` are silently wrong.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sdntk
from sdntk import kernels

# %% [markdown]
# ## 1. Points on a grid, noisy labels, held-out points

# %%
side = jnp.linspace(-1, 1, 9)
x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
held_out = jax.random.uniform(jax.random.key(0), (300, 2), minval=-1, maxval=1)


def truth(points):
    return jnp.sin(3 * points[:, 0]) * jnp.cos(2 * points[:, 1])


def noisy(points, key):
    return truth(points) + 0.3 * jax.random.normal(key, len(points))


y, y_held_out = noisy(x, jax.random.key(1)), noisy(held_out, jax.random.key(2))
d = np.asarray(sdntk.decompose(sdntk.gram(kernels.matern(2.5, 0.5), x)).eigenvalues)
coincide = int((np.diff(d) < 1e-12 * d[-1])[d[1:] > 1e-9 * d[-1]].sum())
print(f"{len(x)} points; {coincide} pairs of eigenvalues coincide")

# %% [markdown]
# ## 2. The held-out error of the fifth round, and its gradient

# %%
ROUNDS = 5


@jax.jit
def error(parameters):
    """Held-out mean squared error after five rounds; both parameters are positive, so their logarithms are free."""
    length_scale, tolerance = jnp.exp(parameters)
    run = sdntk.distill(kernels.matern(2.5, length_scale), x, y, tolerance=tolerance, rounds=ROUNDS)
    return jnp.mean((run.predict(held_out)[-1] - y_held_out) ** 2)


value_and_gradient = jax.jit(jax.value_and_grad(error))
start = jnp.log(jnp.array([0.2, 0.005]))
value, gradient = value_and_gradient(start)
step = 1e-5
differences = [(error(start + step * e) - error(start - step * e)) / (2 * step) for e in jnp.eye(2)]
print("gradient:", gradient, " finite differences:", jnp.array(differences))
np.testing.assert_allclose(gradient, differences, rtol=1e-6)

# %% [markdown]
# ## 3. Gradient descent

# %%
optimiser = optax.adam(0.05)
parameters, state = start, optimiser.init(start)
path, errors = [start], []
for _ in range(120):
    value, gradient = value_and_gradient(parameters)
    updates, state = optimiser.update(gradient, state)
    parameters = optax.apply_updates(parameters, updates)
    path.append(parameters)
    errors.append(float(value))
length_scale, tolerance = np.exp(parameters)
print(
    f"from {errors[0]:.4f} to {errors[-1]:.4f}: length scale {length_scale:.3f}, tolerance {tolerance:.4f}"
)
assert errors[-1] < 0.8 * errors[0]

# %% [markdown]
# A grid of both parameters finds nothing better. Where the chain has collapsed by the fifth round
# the error is the labels' mean square, and its gradient zero: descent has to start where five
# rounds are active.

# %%
scales, tolerances = np.geomspace(0.1, 2, 17), np.geomspace(0.002, 0.2, 17)
grid = jax.lax.map(
    lambda scale: jax.lax.map(
        lambda eps: error(jnp.log(jnp.stack([scale, eps]))), jnp.asarray(tolerances)
    ),
    jnp.asarray(scales),
)
best = float(grid.min())
print(f"best of the grid: {best:.4f}; descent: {errors[-1]:.4f}")
assert errors[-1] < best * 1.02

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(errors)
left.set(xlabel="step of gradient descent", ylabel="held-out mean squared error, round 4")
colours = right.contourf(scales, tolerances, np.asarray(grid).T, 30)
right.plot(*np.exp(np.array(path)).T, "w.-", markersize=3, linewidth=0.8, label="gradient descent")
right.set(xscale="log", yscale="log", xlabel="length scale", ylabel="tolerance of every round")
right.set_xticks([0.1, 0.3, 1, 2], ["0.1", "0.3", "1", "2"])
right.minorticks_off()
right.legend(facecolor="0.3", labelcolor="w")
figure.colorbar(colours, label="held-out mean squared error, round 4")
plt.show()

# %% [markdown]
# ## 4. What was found

# %%
run = sdntk.distill(kernels.matern(2.5, length_scale), x, y, tolerance=tolerance, rounds=ROUNDS)
to_truth = [float(jnp.mean((fit - truth(held_out)) ** 2)) for fit in run.predict(held_out)]
print("mean squared distance to the truth, round by round:", [f"{value:.4f}" for value in to_truth])
print("multipliers:", [f"{c:.2e}" for c in run.multipliers])
