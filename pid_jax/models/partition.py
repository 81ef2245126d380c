"""Parameters in two parts: those that training changes, and frozen ones.

Both parts are trees of nested dicts, with the paths of the whole tree.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which parameters are frozen, and in which dtype."""

    frozen: frozenset[Path] = frozenset()
    matrix_dtype: DTypeLike = jnp.float32
    """Of frozen kernels and embeddings. All other parameters stay in float32."""

    def split(self, tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The trained part and the frozen part of a tree with a leaf for each parameter."""
        flat = flatten_dict(tree)
        trained, frozen = (
            {path: leaf for path, leaf in flat.items() if (path in self.frozen) == part}
            for part in (False, True)
        )
        return unflatten_dict(trained), unflatten_dict(frozen)

    def split_params(
        self, params: Mapping[str, Any], convert: Callable[[Any, DTypeLike], Any] = jnp.asarray
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`split` of parameters, with the frozen ones in their dtype.

        convert: returns an array in a dtype.
        """
        trained, frozen = self.split(params)
        flat = flatten_dict(frozen)
        for path in flat:
            flat[path] = convert(flat[path], self.dtype_of(path, flat[path].ndim))
        return trained, unflatten_dict(flat)

    def dtype_of(self, path: Path, dimensions: int) -> DTypeLike:
        """The dtype of a frozen parameter."""
        return self.matrix_dtype if is_matrix(path, dimensions) else jnp.float32


_NO_MATRICES = ("relative_position_bias", "sinusoids", "final_logits_bias")


def is_matrix(path: Path, dimensions: int) -> bool:
    """Whether a parameter is a kernel or a learned embedding.

    Norm scales have one dimension. A table of position biases is a bias all the same.
    """
    name = "/".join(path)
    return dimensions >= 2 and not any(part in name for part in _NO_MATRICES)


def joined(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the leaves of all parts."""
    flat: dict[Path, Any] = {}
    for part in parts:
        flat |= flatten_dict(part)
    return unflatten_dict(flat)


def of_paths_in(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a tree that has the paths of another tree."""
    flat = flatten_dict(tree)
    return unflatten_dict({path: flat[path] for path in flatten_dict(other)})
