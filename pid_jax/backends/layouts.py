"""Memory layouts of keys and values, for documents and for the decoder's key/value cache.

All products with keys or values, slices of them and writes to a cache are methods of `Layout`. To
add a layout, write a subclass here and name it in `settings.BY_PLATFORM`.

The axes before the last two of a key or value array are batch axes: documents, prompts, beams and
heads, in any number.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pid_jax.backends.matmul import precision_of


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
    """The order of the last two axes of keys and values: attended tokens S and head width K."""

    attended_axis: ClassVar[int]
    """The axis of the attended tokens, counted from the end: -1 or -2."""

    @abc.abstractmethod
    def from_heads(self, x: Float[Array, "*batch S K"]) -> Float[Array, "*batch _ _"]:
        """Projected keys or values in this layout."""

    @abc.abstractmethod
    def with_axes(self, x: Float[Array, "*batch"]) -> tuple[Float[Array, "*split_batch"], str]:
        """Keys or values with one axis for each of s, g and k, and the order of these."""

    @abc.abstractmethod
    def scores(
        self, query: Float[Array, "*batch L K"], key: Float[Array, "*batch _ _"]
    ) -> Float[Array, "*batch L S"]:
        """The products of queries and keys, in float32."""

    @abc.abstractmethod
    def weighted(
        self, weights: Float[Array, "*batch L S"], value: Float[Array, "*batch _ _"]
    ) -> Float[Array, "*batch L K"]:
        """The weighted sums of values."""

    def for_heads(self, heads: int) -> "Layout":
        """This layout for so many key/value heads."""
        del heads
        return self

    def groups(self, x: Array) -> int:
        """The number of key/value heads G."""
        return int(x.shape[-3])

    def length(self, x: Array) -> int:
        """The number of attended tokens."""
        return int(x.shape[self.attended_axis])

    def pad(self, x: Float[Array, "*any"], slots: int) -> Float[Array, "*any_padded"]:
        """Adds `slots` empty slots after the tokens."""
        widths = [(0, 0)] * x.ndim
        widths[self.attended_axis] = (0, slots)
        return jnp.pad(x, widths)

    def window(
        self, x: Float[Array, "*any"], start: int | Int[Array, ""], size: int
    ) -> Float[Array, "*any_cut"]:
        """A slice of `size` tokens. The first has index `start`."""
        if isinstance(start, int):
            return jax.lax.slice_in_dim(x, start, start + size, axis=x.ndim + self.attended_axis)
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim + self.attended_axis)

    def write(
        self, cache: Float[Array, "*any"], new: Float[Array, "*any_new"], slot: Int[Array, ""]
    ) -> Float[Array, "*any"]:
        """Writes new tokens into the cache. The first is at `slot`, in every row.

        As many as the cache has replace it.
        """
        axis = cache.ndim + self.attended_axis
        return jax.lax.dynamic_update_slice_in_dim(cache, new, slot, axis=axis)

    def write_each(
        self,
        cache: Float[Array, "*rows_and_token"],
        new: Float[Array, "*rows_and_new"],
        slots: Int[Array, "*rows"],
    ) -> Float[Array, "*rows_and_token"]:
        """Writes new tokens into the cache. Each row has the slot of its first one in `slots`.

        As many as the cache has replace it.
        """
        if new.shape == cache.shape:
            return new
        offset = jnp.arange(self.length(cache)) - slots[..., None]
        count = self.length(new)
        axes = range(slots.ndim, cache.ndim)
        offset = jnp.expand_dims(offset, [i for i in axes if i - cache.ndim != self.attended_axis])
        index = jnp.clip(offset, 0, count - 1)
        moved = jnp.take_along_axis(new, index, axis=self.attended_axis)
        return jnp.where((offset >= 0) & (offset < count), moved, cache)


@dataclasses.dataclass(frozen=True)
class AttendedFirst(Layout):
    """`[..., S, K]`, as in papers: the reference version."""

    attended_axis: ClassVar[int] = -2

    def from_heads(self, x: Float[Array, "*batch S K"]) -> Float[Array, "*batch S K"]:
        return x

    def with_axes(self, x: Float[Array, "*batch G S K"]) -> tuple[Array, str]:
        return x, "gsk"

    def scores(
        self, query: Float[Array, "*batch L K"], key: Float[Array, "*batch S K"]
    ) -> Float[Array, "*batch L S"]:
        return jnp.einsum(
            "...lk,...sk->...ls",
            query,
            key,
            precision=precision_of(query.dtype),
            preferred_element_type=jnp.float32,
        )

    def weighted(
        self, weights: Float[Array, "*batch L S"], value: Float[Array, "*batch S K"]
    ) -> Float[Array, "*batch L K"]:
        return jnp.einsum(
            "...ls,...sk->...lk", weights, value, precision=precision_of(weights.dtype)
        )


@dataclasses.dataclass(frozen=True)
class AttendedLast(Layout):
    """`[..., K, S]`.

    With the few queries of a decode step, XLA's CPU products read this layout 3 to 5 times as fast
    as `AttendedFirst`.
    """

    attended_axis: ClassVar[int] = -1

    def from_heads(self, x: Float[Array, "*batch S K"]) -> Float[Array, "*batch K S"]:
        return x.swapaxes(-2, -1)

    def with_axes(self, x: Float[Array, "*batch G K S"]) -> tuple[Array, str]:
        return x, "gks"

    def scores(
        self, query: Float[Array, "*batch L K"], key: Float[Array, "*batch K S"]
    ) -> Float[Array, "*batch L S"]:
        return jnp.einsum(
            "...lk,...ks->...ls",
            query,
            key,
            precision=precision_of(query.dtype),
            preferred_element_type=jnp.float32,
        )

    def weighted(
        self, weights: Float[Array, "*batch L S"], value: Float[Array, "*batch K S"]
    ) -> Float[Array, "*batch L K"]:
        batch = tuple(range(weights.ndim - 2))
        last = (((weights.ndim - 1,), (weights.ndim - 1,)), (batch, batch))
        precision = precision_of(weights.dtype)
        # XLA's CPU product transposes its second operand, so that should be the smaller one.
        if weights.shape[-2] < FEW_QUERIES:
            product = jax.lax.dot_general(value, weights, last, precision=precision)
            return product.swapaxes(-2, -1)
        return jax.lax.dot_general(weights, value, last, precision=precision)


FEW_QUERIES = 8
"""For fewer queries than this, `AttendedLast` assumes that weights are smaller than values."""


@dataclasses.dataclass(frozen=True)
class HeadsMerged(Layout):
    """`[..., S, G K]`: the projections as they are, without an axis of heads.

    A TPU pads the last axis of an array to a multiple of 128. The width of a head is often 64, and
    a cache may have 24 slots. The heads of a token together are a multiple of 128 in most models.
    For the decoder's cache only: the attention of encoders reads arrays with an axis of heads.
    """

    heads: int = 1
    """The number of key/value heads G."""
    attended_axis: ClassVar[int] = -2

    def for_heads(self, heads: int) -> "HeadsMerged":
        return HeadsMerged(heads)

    def groups(self, x: Array) -> int:
        del x
        return self.heads

    def from_heads(self, x: Float[Array, "*batch G S K"]) -> Float[Array, "*batch S GK"]:
        x = x.swapaxes(-3, -2)
        return x.reshape(*x.shape[:-2], -1)

    def with_axes(self, x: Float[Array, "*batch S GK"]) -> tuple[Array, str]:
        return x.reshape(*x.shape[:-1], self.heads, -1), "sgk"

    def pad(self, x: Float[Array, "*any"], slots: int) -> Float[Array, "*any_padded"]:
        """Adds at least `slots` empty slots, up to a multiple of `ROWS_OF_TILE`."""
        return super().pad(x, slots + -(x.shape[-2] + slots) % ROWS_OF_TILE)

    def scores(
        self, query: Float[Array, "*batch G L K"], key: Float[Array, "*batch S GK"]
    ) -> Float[Array, "*batch G L S"]:
        return ATTENDED_FIRST.scores(query, self.with_axes(key)[0].swapaxes(-3, -2))

    def weighted(
        self, weights: Float[Array, "*batch G L S"], value: Float[Array, "*batch S GK"]
    ) -> Float[Array, "*batch G L K"]:
        return ATTENDED_FIRST.weighted(weights, self.with_axes(value)[0].swapaxes(-3, -2))


ROWS_OF_TILE = 8
"""A TPU stores the last two axes of an array in tiles of 8 x 128 numbers."""

ATTENDED_FIRST = AttendedFirst()
ATTENDED_LAST = AttendedLast()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValue:
    """The keys and values that one attention layer reads, and their layout.

    H query heads may share G key/value heads. Each key/value head then serves H / G consecutive
    query heads (Ainslie et al., arXiv 2305.13245). Keys and values are not repeated: the queries
    of these heads are further rows of one product.
    """

    # Any: trees of shapes, shardings and axes have this structure, too.
    key: Any
    """`Float["*batch G S K"]` in the layout, which orders the last axes."""
    value: Any
    """The same shape as `key`."""
    layout: Layout = dataclasses.field(metadata={"static": True})

    def scores(self, query: Float[Array, "*batch H L K"]) -> Float[Array, "*batch H L S"]:
        """The products of queries and keys, in float32."""
        grouped = _grouped(query, self.groups())
        scores = self.layout.scores(grouped, self.key)
        return scores.reshape(*query.shape[:-1], scores.shape[-1])

    def weighted(self, weights: Float[Array, "*batch H L S"]) -> Float[Array, "*batch H L K"]:
        """The weighted sums of values."""
        sums = self.layout.weighted(_grouped(weights, self.groups()), self.value)
        return sums.reshape(*weights.shape[:-1], sums.shape[-1])

    def groups(self) -> int:
        """The number of key/value heads G."""
        return self.layout.groups(self.key)

    def length(self) -> int:
        """The number of attended tokens."""
        return self.layout.length(self.key)

    def window(self, start: int | Int[Array, ""], size: int) -> "KeyValue":
        """A slice of `size` tokens. The first has index `start`."""
        return jax.tree.map(lambda x: self.layout.window(x, start, size), self)

    def pad(self, slots: int) -> "KeyValue":
        """Adds `slots` empty slots after the tokens."""
        return jax.tree.map(lambda x: self.layout.pad(x, slots), self)

    def write(self, new: "KeyValue", slot: Int[Array, ""]) -> "KeyValue":
        """Writes new tokens into this cache. The first is at `slot`, in every row."""
        return jax.tree.map(lambda old, x: _write(self.layout, old, x, slot), self, new)

    def write_each(self, new: "KeyValue", slots: Int[Array, "*rows"]) -> "KeyValue":
        """Writes new tokens into this cache. Each row has the slot of its first one in `slots`."""
        return jax.tree.map(lambda old, x: self.layout.write_each(old, x, slots), self, new)


def _grouped(
    x: Float[Array, "*batch H L any"], groups: int
) -> Float[Array, "*batch G queries any"]:
    """Joins the queries of heads that share a key/value head: `queries` = (H / G) L."""
    *batch, heads, length, width = x.shape
    return x.reshape(*batch, groups, heads // groups * length, width)


def _write(layout: Layout, cache: Array, new: Array, slot: Int[Array, ""]) -> Array:
    """`Layout.write`, which JAX would batch as a scatter."""

    @jax.custom_batching.custom_vmap
    def write(cache: Array, new: Array, slot: Array) -> Array:
        return layout.write(cache, new, slot)

    @write.def_vmap
    def write_all(
        size: int, batched: list[bool], cache: Array, new: Array, slot: Array
    ) -> tuple[Array, bool]:
        if batched != [True, True, False]:
            raise NotImplementedError("all vmapped rows are written at one slot")
        return layout.write(cache, new, slot), True

    return write(cache, new, slot)
