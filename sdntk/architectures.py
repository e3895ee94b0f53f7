"""Networks described by plain data, from which both the kernel and the trainable network of one
architecture are built.

A layer says what it computes at finite width, in the NTK parameterisation (Jacot et al. 2018): all
trainable numbers w, b are drawn from N(0, 1) and the scale stands in the forward pass. The widths
are not part of a description: the kernel is the limit of infinite width, and a network is given its
width, and its number of outputs, when it is built. :func:`sdntk.kernels.ntk` takes a description as
it is.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdntk._arguments import (
    ArrayLike,
    as_choice,
    as_count,
    as_number,
    as_sequence,
    require_type,
    shown,
)

#: The standard deviation of weights that keeps the variance of ReLU layers from depth to depth (He
#: et al. 2015).
SQRT_2 = math.sqrt(2)

#: No network is deeper: none of so many layers could be compiled.
MOST_LAYERS = 10_000

#: The activation functions by name, as a network applies them; each has a kernel in closed form.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: jnp.maximum(x, 0),
    "erf": jax.scipy.special.erf,
    "gelu": lambda x: (
        x * jax.scipy.stats.norm.cdf(x)
    ),  # the exact one; many networks approximate it with tanh
    "sin": jnp.sin,
}


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer, y = weight_std w^T x / sqrt(d) + bias_std b, for d inputs."""

    weight_std: float = SQRT_2
    bias_std: float = 0.0

    def __post_init__(self) -> None:
        _check_scales(self)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution of stride 1, zeros around the image so that its size stays.

    y = weight_std (w * x) / sqrt(d) + bias_std b, for d = (entries of the filter) x (channels)
    inputs to each output.
    """

    filter_shape: tuple[int, int] = (3, 3)
    weight_std: float = SQRT_2
    bias_std: float = 0.0

    def __post_init__(self) -> None:
        _check_scales(self)
        object.__setattr__(self, "filter_shape", _as_size("filter_shape", self.filter_shape))


@dataclasses.dataclass(frozen=True)
class Activation:
    """One of :data:`ACTIVATIONS`, entry by entry."""

    name: str = "relu"

    def __post_init__(self) -> None:
        as_choice("activation", self.name, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class AveragePool:
    """Means over windows that do not overlap; rows and columns that fill no window are dropped."""

    window: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", _as_size("window", self.window))


@dataclasses.dataclass(frozen=True)
class GlobalAveragePool:
    """The mean of each channel over the image: from here on the network works on vectors."""


@dataclasses.dataclass(frozen=True)
class Flatten:
    """The numbers of a point, in one vector: from here on the network works on vectors."""


Layer = Dense | Conv | Activation | AveragePool | GlobalAveragePool | Flatten
_LAYERS: dict[str, type[Any]] = {
    layer.__name__: layer
    for layer in (Dense, Conv, Activation, AveragePool, GlobalAveragePool, Flatten)
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network as a tuple of layers; hashable, equal if its layers are.

    The layers that look at images (Conv, AveragePool) come first, then one Flatten or
    GlobalAveragePool, then Dense layers, the last of which is the readout; activations stand
    anywhere before it.

    Args:
        layers: the layers in the order in which they are applied.

    Raises:
        TypeError: ``layers`` holds something that is not a layer.
        ValueError: the layers are not in that order.

    Example:
        >>> readout = Dense(weight_std=1.0, bias_std=0.1)
        >>> Architecture((Flatten(), Dense(), Activation("erf"), readout)).config()[-1]
        {'layer': 'Dense', 'weight_std': 1.0, 'bias_std': 0.1}
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(as_sequence("layers", self.layers)))
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers must hold {', '.join(_LAYERS)}; got {shown(layer)}.")
        to_vectors = [
            i
            for i, layer in enumerate(self.layers)
            if isinstance(layer, (Flatten, GlobalAveragePool))
        ]
        if len(to_vectors) != 1:
            raise ValueError(
                "layers must hold Flatten or GlobalAveragePool, and one of them once; got "
                f"{self.layers}."
            )
        images, vectors = self.layers[: to_vectors[0]], self.layers[to_vectors[0] + 1 :]
        for part, allowed, where in (
            (images, (Conv, AveragePool), "before"),
            (vectors, (Dense,), "after"),
        ):
            for layer in part:
                if not isinstance(layer, (Activation, *allowed)):
                    raise ValueError(
                        f"layers {where} Flatten or GlobalAveragePool must be activations or "
                        f"{' or '.join(kind.__name__ for kind in allowed)}; got {layer}."
                    )
        if not isinstance(self.layers[-1], Dense):
            raise ValueError(
                f"layers must end with Dense, the readout; the last is {self.layers[-1]}."
            )

    @property
    def smallest_image(self) -> tuple[int, int] | None:
        """The least height and width of the images it takes; None if points may have any shape,
        since it flattens them.
        """
        if not any(
            isinstance(layer, (Conv, AveragePool, GlobalAveragePool)) for layer in self.layers
        ):
            return None
        windows = [layer.window for layer in self.layers if isinstance(layer, AveragePool)]
        return math.prod(window[0] for window in windows), math.prod(
            window[1] for window in windows
        )

    def config(self) -> list[dict[str, Any]]:
        """The layers as dictionaries of plain values, for JSON or a table; :meth:`from_config`
        reads them back.
        """
        return [
            {"layer": type(layer).__name__, **dataclasses.asdict(layer)} for layer in self.layers
        ]

    @classmethod
    def from_config(cls, config: Iterable[Mapping[str, Any]]) -> "Architecture":
        """The architecture whose :meth:`config` this is.

        Raises:
            TypeError, ValueError: it is of another form, or a layer's setting is out of range.
        """
        layers = []
        for entry in as_sequence("config", config):
            require_type("config", entry, Mapping, "a dictionary for each layer")
            hyperparameters = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in entry.items()
            }
            kind = hyperparameters.pop("layer", None)
            if not isinstance(kind, str) or kind not in _LAYERS:
                raise ValueError(
                    f'config must name, for each "layer", one of {", ".join(_LAYERS)}; got '
                    f"{shown(kind)}."
                )
            layer = _LAYERS[kind]
            known = {field.name for field in dataclasses.fields(layer)}
            if not hyperparameters.keys() <= known:
                raise ValueError(
                    f"config must hold nothing but {', '.join(known)} for {kind}; it holds "
                    f"{', '.join(map(str, hyperparameters))}."
                )
            layers.append(layer(**hyperparameters))
        if not layers:
            raise ValueError("config must hold the layers of a network; it is empty.")
        return cls(tuple(layers))


def fully_connected(
    depth: int = 3,
    *,
    activation: str = "relu",
    weight_std: ArrayLike = SQRT_2,
    bias_std: ArrayLike = 0.0,
) -> Architecture:
    """A fully connected network; images are flattened first.

    Source: Jacot et al. 2018, *Neural Tangent Kernel*.

    Args:
        depth: the number of hidden layers, at least 0; the readout is one more layer of weights.
        activation: a name in :data:`ACTIVATIONS`, after each hidden layer.
        weight_std: the standard deviation of weights, times the root of the number of inputs; the
            same in every layer.
        bias_std: that of biases; 0 for none.

    Raises:
        ValueError, TypeError: an argument is out of range.

    Example:
        >>> len(fully_connected(depth=3).layers)        # Flatten, 3 x (Dense, ReLU), Dense
        8
    """
    dense = Dense(*_as_stds(weight_std, bias_std))
    hidden = (dense, Activation(activation)) * as_count(
        "depth", depth, at_least=0, at_most=MOST_LAYERS
    )
    return Architecture((Flatten(), *hidden, dense))


def convolutional(
    depth: int = 3,
    *,
    readout: str = "flatten",
    activation: str = "relu",
    filter_shape: tuple[int, int] = (3, 3),
    weight_std: ArrayLike = SQRT_2,
    bias_std: ArrayLike = 0.0,
) -> Architecture:
    """A plain convolutional network on images (height, width, channels), all its layers at full
    resolution.

    With a flattening readout the kernel never compares different pixels (at infinite width weight
    sharing is then without effect); with a pooling readout it does, which costs (height x width)^2
    numbers for each pair of images. Source: Novak et al. 2019, *Bayesian Deep Convolutional
    Networks with Many Channels are Gaussian Processes*; Arora et al. 2019, *On Exact Computation
    with an Infinitely Wide Neural Net*.

    Args:
        depth: the number of convolutions, at least 1, each followed by the activation.
        readout: ``"flatten"`` or ``"pool"`` (the mean over the image), before the dense readout.
        activation: a name in :data:`ACTIVATIONS`.
        filter_shape: height and width of the filters.
        weight_std: the standard deviation of weights, times the root of the number of inputs; the
            same in every layer.
        bias_std: that of biases; 0 for none.

    Raises:
        ValueError, TypeError: an argument is out of range.

    Example:
        >>> convolutional(depth=1, readout="pool").config()[2]
        {'layer': 'GlobalAveragePool'}
    """
    readouts: dict[str, Layer] = {"flatten": Flatten(), "pool": GlobalAveragePool()}
    to_vector = readouts[as_choice("readout", readout, readouts)]
    stds = _as_stds(weight_std, bias_std)
    block = (Conv(filter_shape, *stds), Activation(activation)) * as_count(
        "depth", depth, at_least=1, at_most=MOST_LAYERS
    )
    return Architecture((*block, to_vector, Dense(*stds)))


#: Convolutions before the first pool, between the pools, and after the second, by depth.
_MYRTLE_BLOCKS = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def myrtle(
    depth: int = 5,
    *,
    activation: str = "relu",
    weight_std: ArrayLike = SQRT_2,
    bias_std: ArrayLike = 0.0,
) -> Architecture:
    """The Myrtle networks: 3x3 convolutions in three blocks with 2x2 average pools between, then
    the mean over the image.

    On images of 32 x 32 the mean is over 8 x 8 pixels (there usually written as three further 2x2
    pools).

    Source: Shankar et al. 2020, *Neural Kernels Without Tangents* (after D. Page's network of
    Myrtle.ai); the blocks are those of the notebook on Myrtle kernels that comes with
    neural-tangents.

    Args:
        depth: layers of weights, 5, 7 or 10: all but the readout are convolutions.
        activation: a name in :data:`ACTIVATIONS`, after each convolution.
        weight_std: the standard deviation of weights, times the root of the number of inputs; the
            same in every layer.
        bias_std: that of biases; 0 for none.

    Raises:
        ValueError, TypeError: an argument is out of range.

    Example:
        >>> sum(isinstance(layer, (Conv, Dense)) for layer in myrtle(depth=7).layers)
        7
    """
    depth = as_count("depth", depth, at_least=1)
    if depth not in _MYRTLE_BLOCKS:
        raise ValueError(f"depth must be 5, 7 or 10, the Myrtle networks there are; got {depth}.")
    stds = _as_stds(weight_std, bias_std)
    first, second, third = (
        (Conv((3, 3), *stds), Activation(activation)) * count for count in _MYRTLE_BLOCKS[depth]
    )
    return Architecture(
        (*first, AveragePool(), *second, AveragePool(), *third, GlobalAveragePool(), Dense(*stds))
    )


def _check_scales(layer: Dense | Conv) -> None:
    weight_std, bias_std = _as_stds(layer.weight_std, layer.bias_std)
    object.__setattr__(layer, "weight_std", weight_std)
    object.__setattr__(layer, "bias_std", bias_std)


def _as_stds(weight_std: ArrayLike, bias_std: ArrayLike) -> tuple[float, float]:
    return (
        as_number("weight_std", weight_std, lambda std: std > 0, "must be finite and positive"),
        as_number("bias_std", bias_std, lambda std: std >= 0, "must be finite and at least 0"),
    )


def _as_size(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be two integers, height and width; got {shown(value)}.")
    return as_count(name, value[0], at_least=1), as_count(name, value[1], at_least=1)


class ArchitectureName(StrEnum):
    """The architectures that have a name on the command line."""

    FULLY_CONNECTED = "fully-connected"
    CONVOLUTIONAL = "convolutional"
    MYRTLE = "myrtle"


#: Depths of the named architectures, where none is given.
DEFAULT_DEPTH = {
    ArchitectureName.FULLY_CONNECTED: 3,
    ArchitectureName.CONVOLUTIONAL: 3,
    ArchitectureName.MYRTLE: 5,
}


def named_architecture(name: ArchitectureName, depth: int, activation: str) -> Architecture:
    """The architecture of that name."""
    as_choice("name", name, list(ArchitectureName))
    build = {
        ArchitectureName.FULLY_CONNECTED: fully_connected,
        ArchitectureName.CONVOLUTIONAL: convolutional,
        ArchitectureName.MYRTLE: myrtle,
    }[name]
    return build(depth, activation=activation)
