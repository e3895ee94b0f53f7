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
# # Self-distillation with neural tangent kernels
#
# A very wide network, trained by gradient descent on the squared loss, behaves like a kernel
# method: its kernel is the neural tangent kernel (NTK)
# $\Theta(x, x') = \langle \partial f(x)/\partial w, \partial f(x')/\partial w \rangle$ (Jacot et
# al. 2018). So all that the first notebook showed for Green's functions holds for wide networks,
# with $g = \Theta$. Here the same `distill` runs on images with noisy labels, and is compared with
# what one would do without it.

# %%
import itertools
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)  # NTK Gram matrices need float64

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sdntk
from sdntk import Status, architectures, datasets, kernels

# %% [markdown]
# ## 1. A network, described once, and its kernel
#
# An architecture is plain data: layers with the scale of their weights. `kernels.ntk` turns it into
# a kernel, a function of two arrays of points like any other. (A `kernel_fn` written with
# `neural_tangents.stax` works as well.)

# %%
network = architectures.fully_connected(depth=3)  # three hidden layers, ReLU
kernel = kernels.ntk(network)
network

# %% [markdown]
# On unit vectors the kernel depends on their angle alone. Depth makes it more local: distant points
# have less in common.

# %%
angles = np.linspace(0, np.pi, 181)
circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for depth in (1, 3, 5):
    values = np.asarray(kernels.ntk(architectures.fully_connected(depth))(circle[:1], circle))[0]
    ax.plot(np.degrees(angles), values / values[0], label=f"{depth} hidden layers")
ax.set(xlabel="angle between x and x', degrees", ylabel="Theta(x, x') / Theta(x, x)")
ax.legend(frameon=False)

# One hidden layer by hand (Cho and Saul 2009): the arc-cosine kernels of order 1 and 0.
u = np.cos(angles)
by_hand = (np.sqrt(1 - u**2) + u * (np.pi - angles)) / np.pi + u * (np.pi - angles) / np.pi
np.testing.assert_allclose(
    np.asarray(kernels.ntk(architectures.fully_connected(1))(circle[:1], circle))[0],
    by_hand,
    atol=1e-7,
)
plt.show()

# %% [markdown]
# ## 2. Images with noisy labels
#
# 600 of scikit-learn's digits, balanced by class; a fifth of their labels is replaced by another
# class at random. Rows of labels are centred, so that a fit shrinks towards "any class", not
# towards "none".

# %%
data = datasets.digits(jax.random.key(0))
chosen = datasets.balanced_subset(data.train_labels, 600, jax.random.key(1))
x, x_test = datasets.standardise(data.train_images[chosen], data.test_images)
clean = data.train_labels[chosen]
noisy = datasets.label_noise(clean, 0.2, jax.random.key(2), data.num_classes)
y = datasets.one_hot(noisy, data.num_classes, centred=True)
assert np.mean(noisy != clean) == 0.2

fig, axes = plt.subplots(1, 8, figsize=(10, 1.8), layout="constrained")
for ax, image, label, true in zip(axes, data.train_images[chosen], noisy, clean, strict=False):
    ax.imshow(image[..., 0], cmap="gray_r")
    ax.set_title(f"{label}" + (f" (is {true})" if label != true else ""), fontsize="small")
    ax.axis("off")
plt.show()

# %% [markdown]
# ## 3. The Gram matrix
#
# `gram` computes only the tiles on and above the diagonal. With `path` each is written to disk as
# soon as it is done, and a run that was killed resumes where it was. What it returns works wherever
# an array does.

# %%
G = sdntk.gram(kernel, x)
folder = tempfile.TemporaryDirectory()
stored = sdntk.gram(kernel, x, path=Path(folder.name) / "G", block_size=150)
np.testing.assert_allclose(stored, G, rtol=1e-12)
spectrum = sdntk.decompose(stored)

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
ax.loglog(np.arange(1, len(x) + 1), np.asarray(spectrum.eigenvalues)[::-1])
ax.set(xlabel="k", ylabel="k-th largest eigenvalue of G")
plt.show()

# %% [markdown]
# ## 4. Rounds
#
# Each round fits the predictions of the one before, up to a tolerance of one hundredth of the
# labels' mean square.

# %%
mean_square = jnp.mean(y**2, axis=0)
run = sdntk.distill_spectrum(spectrum, y, tolerance=0.01 * mean_square, rounds=10)
cross = sdntk.gram(kernel, x_test, x)


def accuracy(outputs, labels):
    return np.mean(np.asarray(outputs).argmax(axis=-1) == labels, axis=-1)


train_accuracy = accuracy(run.fitted, clean)
test_accuracy = accuracy(run.predict_from(cross), data.test_labels)
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
ax.plot(train_accuracy, "o-", label="training images (original labels)")
ax.plot(test_accuracy, "o-", label="test images")
ax.set(xlabel="round of self-distillation", ylabel="accuracy")
ax.legend(frameon=False)
assert train_accuracy[0] < 0.85  # the first fit has learned the noise
assert train_accuracy.max() > train_accuracy[0] + 0.1  # distillation removes it
assert test_accuracy.argmax() > 0  # and at first generalises better
assert test_accuracy[-1] < test_accuracy.max()  # then underfits
plt.show()

# %% [markdown]
# Why: every round raises the multiplier, and the filter leaves fewer and fewer directions (notebook
# 1 shows the theory).

# %%
active = np.asarray(run.status) == Status.ACTIVE
multipliers = np.where(active, np.asarray(run.multipliers), np.nan)
assert np.all(np.diff(multipliers, axis=0)[active[1:]] > 0)
fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
axes[0].semilogy(multipliers)
axes[0].set(xlabel="round", ylabel="multiplier $c_t$ of each class")
for t in (0, 3, 6, 9):
    axes[1].semilogx(
        np.arange(1, len(x) + 1), np.asarray(run.filters)[t, ::-1, 0], label=f"round {t}"
    )
axes[1].set(xlabel="k-th largest eigenvalue", ylabel="diagonal of $B_t$, class 0")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Is it better than one good fit?
#
# The honest question: a larger tolerance regularises too, in one fit. Here both are shown with
# hindsight; `sdntk ntk` chooses round and tolerance on held-out images, over several seeds, and
# writes tables and figures.

# %%
tolerances = np.linspace(0.02, 0.98, 33)
single = [
    float(
        accuracy(
            sdntk.distill_spectrum(spectrum, y, tolerance=t * mean_square, rounds=1).predict_from(
                cross
            ),
            data.test_labels,
        )[0]
    )
    for t in tolerances
]
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
ax.plot(tolerances, single, label="one fit")
ax.axhline(test_accuracy.max(), color="C3", linestyle="--", label="best round of the chain")
ax.set(xlabel="tolerance, as a fraction of $\\Vert y\\Vert^2/K$", ylabel="accuracy on test images")
ax.legend(frameon=False)
print(
    f"best round: {test_accuracy.max():.4f} (round 0: {test_accuracy[0]:.4f}); best single fit: {max(single):.4f}"
)
plt.show()

# %% [markdown]
# On these images the best round is far better than the first, and hardly different from the best
# single fit: what distillation buys here is that nobody had to choose a tolerance well.

# %%
assert abs(test_accuracy.max() - max(single)) < 0.02

# %% [markdown]
# ## 6. A network that is not infinitely wide
#
# `empirical_ntk` takes the kernel from any network's Jacobians at its present weights, Flax modules
# included. At width 512 it is already close to the limit.

# %%
from flax import nnx


class Network(nnx.Module):
    """The same architecture in the NTK parameterisation: weights from N(0, 1), scaled in the forward pass."""

    def __init__(self, width, *, rngs):
        sizes = [64, width, width, width, 1]
        self.weights = nnx.List(
            [
                nnx.Param(jax.random.normal(rngs.params(), shape))
                for shape in itertools.pairwise(sizes)
            ]
        )

    def __call__(self, x):
        *hidden, last = self.weights
        x = x.reshape(len(x), -1)
        for w in hidden:
            x = jax.nn.relu(x @ w * jnp.sqrt(2 / len(w)))
        return x @ last * jnp.sqrt(2 / len(last))


few = x[:30]
exact = np.asarray(kernel(few, few))
distance = {}
for width in (32, 128, 512):
    empirical = np.asarray(kernels.empirical_ntk(Network(width, rngs=nnx.Rngs(0)))(few, few))
    distance[width] = np.linalg.norm(empirical - exact) / np.linalg.norm(exact)
print({width: round(float(value), 3) for width, value in distance.items()})
assert distance[512] < 0.5 * distance[32]
folder.cleanup()
