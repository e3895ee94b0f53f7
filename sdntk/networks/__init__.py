"""Networks of finite width, as Flax NNX modules."""

from sdntk.networks.finite_width import FiniteWidth

__all__ = ["FiniteWidth"]
