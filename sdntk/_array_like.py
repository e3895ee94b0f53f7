"""Results that carry more than an array, and stand wherever the array does."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: "ActsAsArray", *others: Any) -> Any:
        plain = [other._array if isinstance(other, ActsAsArray) else other for other in others]
        return getattr(self._array, name)(*plain)

    method.__name__ = name
    return method


class ActsAsArray:
    """What has an array ``_array`` and acts as it: in JAX's and NumPy's functions, in arithmetic,
    indexing and comparisons, with the array's methods and properties.
    """

    @property
    def _array(self) -> Any:
        raise NotImplementedError

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._array, dtype=dtype, copy=copy)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self._array, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._array)

    __len__ = _forwarded("__len__")
    __getitem__ = _forwarded("__getitem__")
    __bool__ = _forwarded("__bool__")
    __neg__, __pos__, __abs__ = map(_forwarded, ("__neg__", "__pos__", "__abs__"))
    __add__, __radd__ = map(_forwarded, ("__add__", "__radd__"))
    __sub__, __rsub__ = map(_forwarded, ("__sub__", "__rsub__"))
    __mul__, __rmul__ = map(_forwarded, ("__mul__", "__rmul__"))
    __truediv__, __rtruediv__ = map(_forwarded, ("__truediv__", "__rtruediv__"))
    __floordiv__, __rfloordiv__ = map(_forwarded, ("__floordiv__", "__rfloordiv__"))
    __mod__, __rmod__ = map(_forwarded, ("__mod__", "__rmod__"))
    __float__, __round__ = map(_forwarded, ("__float__", "__round__"))
    __pow__, __rpow__ = map(_forwarded, ("__pow__", "__rpow__"))
    __matmul__, __rmatmul__ = map(_forwarded, ("__matmul__", "__rmatmul__"))
    __lt__, __le__ = map(_forwarded, ("__lt__", "__le__"))
    __gt__, __ge__ = map(_forwarded, ("__gt__", "__ge__"))
    __eq__, __ne__ = map(_forwarded, ("__eq__", "__ne__"))
    __hash__ = None  # type: ignore[assignment]
