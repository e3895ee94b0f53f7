"""One command for the day a GPU or TPU is at hand: all that this library does at scale, meant to
take less than ten minutes.

Stages run one after another, and what each found is written at once; a stage that fails says so and
takes nothing with it, and none is begun after nine minutes. On a CPU sizes are small: it shows that
every stage works.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import sdntk
from benchmarks import gram, report, training
from benchmarks.timing import measure
from sdntk import architectures, datasets, kernels, losses
from sdntk.experiments.paper_figures import NETWORKS
from sdntk.kernels import ntk
from sdntk.training.state import TrainingConfig
from sdntk.training.train import train

#: No stage is begun later.
SECONDS = 540


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a kind of device can do in time.

    Attributes:
        gram: K of the Gram matrix, and the batch of nt.batch.
        chains: K of chains by every method; dense up to most_dense.
        landmarks: of the Nystrom method.
        images: training and test images of the kernel's chain.
        recomputed: K of products whose tiles are never kept.
        steps: of ResNet-18 and of 8 small networks, and of ResNet-50.
        batch: images in a step.
    """

    gram: tuple[int, int]
    chains: tuple[int, ...]
    most_dense: int
    landmarks: int
    images: tuple[int, int]
    recomputed: int
    steps: int
    batch: int


SMALL = Sizes((1000, 500), (500, 1000), 1000, 200, (400, 100), 4000, 3, 8)
LARGE = Sizes((16_000, 2000), (2000, 8000, 32_000), 8000, 4000, (50_000, 10_000), 10**6, 100, 128)

Row = dict[str, Any]


def _row(stage: str, what: str, size: Any, seconds: float, figure: Any, note: str) -> Row:
    return {
        "stage": stage,
        "what": what,
        "size": size,
        "seconds (median)": seconds,
        "figure": figure,
        "note": note,
    }


def gram_matrices(sizes: Sizes) -> Iterator[Row]:
    """The NTK's Gram matrix, by this library and by nt.batch."""
    size, batch = sizes.gram
    network = architectures.fully_connected(3)
    x = jax.random.normal(jax.random.key(0), (size, 32, 32, 3), jnp.float64)
    kernel, kernel_fn = ntk(network), gram.stax_kernel_fn(network)
    batched = kernels.load_neural_tangents().batch(kernel_fn, batch_size=batch)
    theirs = measure(lambda: batched(x, None, "ntk"), repeats=1).median
    ours = measure(lambda: sdntk.gram(kernel, x), repeats=1).median
    note = f"seconds over those of nt.batch by {batch}, {theirs:.3g}"
    yield _row("Gram matrix", "float64", size, ours, ours / theirs, note)


def chains(sizes: Sizes) -> Iterator[Row]:
    """Ten rounds by every method, the kernel's values included."""
    kernel, rng = kernels.matern(1.5, 1.0), np.random.default_rng(0)
    for size in sizes.chains:
        x = jnp.asarray(rng.normal(size=(size, 5)))
        y = jnp.sin(x).sum(axis=1) + 0.5 * jnp.asarray(rng.normal(size=size))
        methods: dict[str, dict[str, Any]] = {
            "krylov": {"method": "krylov"},
            "nystrom": {"method": "nystrom", "landmarks": min(sizes.landmarks, size)},
        }
        if size <= sizes.most_dense:
            methods = {"dense": {"method": "dense"}, **methods}
        for name, options in methods.items():

            def run(x: Any = x, y: Any = y, options: Any = options) -> Any:
                return sdntk.distill(
                    kernel, x, y, multiplier=1e-4, rounds=10, **options
                ).multipliers

            seconds = measure(run, repeats=1).median
            note = f"{options['landmarks']:,} landmarks" if "landmarks" in options else ""
            yield _row("ten rounds", name, size, seconds, "", note)


def images(sizes: Sizes) -> Iterator[Row]:
    """Ten rounds at four tolerances on CIFAR-10 (random images where it is missing), float32."""
    train_size, test_size = sizes.images
    try:
        data = datasets.cifar10()
        x, labels = data.train_images[:train_size], data.train_labels[:train_size]
        new, truth, source = data.test_images, data.test_labels, "CIFAR-10, as it is"
    except FileNotFoundError:
        rng = np.random.default_rng(0)
        x, new = (rng.normal(size=(n, 32, 32, 3)) for n in sizes.images)
        labels, truth = (rng.integers(0, 10, size=n) for n in sizes.images)
        source = "random images"
    new, truth = new[:test_size], truth[:test_size]
    mean, deviation = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
    x, new = ((part - mean) / deviation for part in (x, new))
    y = datasets.one_hot(labels, 10, centred=True)
    scale = jnp.mean(y**2, axis=0)
    tolerances = jnp.array([0.1, 0.2, 0.3, 0.5])[:, None] * scale[None]

    start = time.perf_counter()
    operator = sdntk.kernel_operator(
        ntk(architectures.fully_connected(3)), x, keep=True, dtype=jnp.float32
    )
    of_gram = time.perf_counter() - start
    spectrum = sdntk.krylov(operator, y, tolerance=tolerances, rounds=10, rtol=1e-4)
    run = sdntk.distill_spectrum(spectrum, y, tolerance=tolerances[1], rounds=10)
    of_chain = time.perf_counter() - start - of_gram
    run = dataclasses.replace(run, kernel=ntk(architectures.fully_connected(3)), x=jnp.asarray(x))
    right = np.mean(np.asarray(run.predict(new))[0].argmax(axis=-1) == truth)
    seconds = time.perf_counter() - start
    note = (
        f"{source}: Gram matrix {of_gram:.3g} s, {int(spectrum.steps)} steps {of_chain:.3g} s, "
        f"predictions at {test_size:,} {seconds - of_gram - of_chain:.3g} s"
    )
    yield _row("images", "test accuracy of round 0", train_size, seconds, float(right), note)


def recomputed(sizes: Sizes) -> Iterator[Row]:
    """One product with a Gram matrix whose tiles are never kept."""
    size = sizes.recomputed
    x = jax.random.normal(jax.random.key(0), (size, 16), jnp.float32)
    operator = sdntk.kernel_operator(
        kernels.rbf(4.0), x, keep=False, block_size=min(size, 8000), dtype=jnp.float32
    )
    v = jax.random.normal(jax.random.key(1), (size, 1), jnp.float64)
    small = min(size, 8000)
    warm = sdntk.kernel_operator(
        kernels.rbf(4.0), x[:small], keep=False, block_size=small, dtype=jnp.float32
    )
    jax.block_until_ready(warm(v[:small]))
    start = time.perf_counter()
    jax.block_until_ready(operator(v))
    seconds = time.perf_counter() - start
    note = f"{size**2 / 2 / seconds:.3g} values a second; rbf, R^16"
    yield _row("values recomputed", "one product", size, seconds, "", note)


def networks(sizes: Sizes) -> Iterator[Row]:
    """Steps of ResNet-18 and ResNet-50 with their utilisation, and 8 small networks at once."""
    peak = training.PEAKS.get(jax.devices()[0].device_kind)
    with jax.enable_x64(False):
        for name in ("resnet18", "resnet50"):
            seconds = _seconds_a_step(name, 1, sizes)
            note = f"{sizes.batch} images a step"
            utilisation: Any = ""
            if peak is not None:
                work = training.flops_per_step(name) * sizes.batch / training.SETTINGS["batch size"]
                utilisation = work / seconds / peak
                note += "; figure: share of the peak of TF32"
            yield _row("training", f"a step of {name}", sizes.batch, seconds, utilisation, note)
        at_once, alone = (_seconds_a_step("small", 8, sizes, at_once=n) for n in (8, 1))
        note = f"seconds over those of one after another, {alone:.3g}"
        yield _row("training", "a step of 8 networks at once", 8, at_once, at_once / alone, note)


def _seconds_a_step(name: str, count: int, sizes: Sizes, at_once: int | None = None) -> float:
    """By the difference of two trainings, of which one takes three times as many steps."""
    x = jax.random.normal(jax.random.key(0), (2 * sizes.batch, 32, 32, 3), jnp.float32)
    y = jax.nn.one_hot(jnp.arange(len(x)) % 10, 10, dtype=jnp.float32)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return NETWORKS[name](10, rngs=rngs)

    def run(steps: int) -> Any:
        config = TrainingConfig(
            loss=losses.soft_cross_entropy,
            optimiser=optax.adam(1e-3),
            steps=steps,
            batch_size=sizes.batch,
        )
        keys = jax.random.split(jax.random.key(1), count)
        return train(build, keys, x, y, config, at_once=at_once).loss

    steps = sizes.steps, 3 * sizes.steps
    short, long = (measure(functools.partial(run, n), repeats=3).median for n in steps)
    return (long - short) / (2 * sizes.steps)


STAGES: tuple[Callable[[Sizes], Iterator[Row]], ...] = (
    gram_matrices,
    chains,
    images,
    networks,
    recomputed,
)


def main(*, quick: bool = False) -> list[Row]:
    """Run every stage, and keep table and JSON as it goes; on a CPU, and ``quick``, small ones."""
    sizes = SMALL if quick or jax.default_backend() == "cpu" else LARGE
    name = report.record_name("accelerator", quick=quick)
    settings = {key: str(value) for key, value in dataclasses.asdict(sizes).items()}
    start, rows = time.perf_counter(), []
    for stage in STAGES:
        title = stage.__name__.replace("_", " ")
        if time.perf_counter() - start > SECONDS:
            rows.append(_row(title, "not begun", "", float("nan"), "", "nine minutes were over"))
            report.write(name, "All of it on one device", settings, rows)
            continue
        print(f"accelerator: {title} ...", flush=True)
        try:
            for row in stage(sizes):
                rows.append(row)
        except Exception as error:  # a stage must not take the others' figures with it
            words = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            rows.append(_row(title, "failed", "", float("nan"), "", words))
        report.write(name, f"All of it on one {jax.devices()[0].device_kind}", settings, rows)
    return rows
