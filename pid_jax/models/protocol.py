"""What a model family must provide: the interface between the method and the architectures.

`pid_jax.prompt_in_decoder` and `pid_jax.decoding` see a model only through this protocol.
A family is a Flax Linen module (frozen and hashable, so that it is a static argument of
`jax.jit`) whose methods are pure functions of a parameter tree:

    encoder_output = model.apply({"params": params}, documents, mask, method="encode")

Positions, masks and the key/value cache are explicit arguments and results. There are no mutable
collections. The prompt axis never appears: `jax.vmap` adds it.

Letters of shapes, each with one meaning:

    B documents
    P prompts per document
    S document tokens, or attended tokens in attention code
    L decoder tokens (prompt and target), or queries in attention code
    T target tokens
    W beams
    D model width
    H attention heads
    G key/value heads
    K width of a head
    M slots of the key/value cache
    F feed-forward width
    V vocabulary
    N layers

The docstring of a file names the other sizes of that file. `_` is a size without a name.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pid_jax.backends.layouts import KeyValue as KeyValue

Params = Mapping[str, Any]


class Past(NamedTuple):
    """The key/value cache. The caller owns and writes it."""

    layers: tuple[KeyValue, ...]
    """One per decoder layer, `Float["B G M K"]` in their layout: M slots, in order of position."""
    mask: Bool[Array, "B M"]
    """True for the slots that contain a token."""


@runtime_checkable
class Config(Protocol):
    """What the rest of the package reads of a family's configuration."""

    model_type: str
    vocab_size: int
    pad_token_id: int
    eos_token_id: int
    """Ends targets, and outputs."""
    other_eos_token_ids: tuple[int, ...]
    """What else ends outputs, such as the end of a turn."""
    decoder_start_token_id: int
    forced_bos_token_id: int | None
    """The first token of every output whose prompt is empty. None: not forced."""
    forced_eos_token_id: int | None
    """The last token of every output that reaches its greatest length. None: not forced."""
    dropout_rate: float
    max_document_tokens: int | None
    """The most tokens of a document for which there are positions. None: no such limit."""
    max_decoder_tokens: int | None
    """The same for the start token, a prompt and the answer but its last token."""

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        ...

    def with_tensors(self, names: Collection[str]) -> "Config":
        """The configuration that fits a checkpoint with the tensors of these names."""
        ...


def end_token_ids(config: Config) -> tuple[int, ...]:
    """Every token that ends an output."""
    return (config.eos_token_id, *config.other_eos_token_ids)


def control_token_ids(config: Config) -> frozenset[int]:
    """Every token that steers the model and stands for no text."""
    forced = config.forced_bos_token_id, config.forced_eos_token_id
    steering = config.pad_token_id, config.decoder_start_token_id, *end_token_ids(config), *forced
    return frozenset(token for token in steering if token is not None)


@runtime_checkable
class EncoderDecoder(Protocol):
    """A model family's Linen module."""

    config: Config
    dtype: DTypeLike

    def __hash__(self) -> int: ...

    def init(self, key: Array, *args: Any, **kwargs: Any) -> Any: ...

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any: ...

    def encode(
        self,
        documents: Int[Array, "B S"],
        document_mask: Bool[Array, "B S"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        """The encoder's output, with dropout unless `deterministic`."""
        ...

    def project_cross_attention(
        self, encoder_output: Float[Array, "B S D"]
    ) -> tuple[KeyValue, ...]:
        """Each decoder layer's cross-attention keys and values: `Float["B G S K"]`, laid out."""
        ...

    def decode(
        self,
        tokens: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        positions: Int[Array, "B L"],
        slots: Int[Array, "#B L"],
        cross_attention: tuple[KeyValue, ...],
        document_mask: Bool[Array, "B S"],
        past: Past | None = None,
        segments: Int[Array, "B L"] | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B L D"], tuple[KeyValue, ...]]:
        """One prompt's decoder over L new tokens.

        tokens: attend to each other causally, to `past`, and to the document.
        token_mask: False for padding, which nothing attends to.
        positions: each token's position in its own sequence, padding not counted (for
            families with absolute positions).
        slots: each token's index in its padded sequence, one row where all rows agree. Slot j of
            `past` has the index j. Differences of slots are differences of positions, which is
            all that relative families need.
        segments: where the L tokens are several sequences one after another, the number of each
            token's own (`pid_jax.data.packing`). Tokens attend to their own sequence only.
        Returns the last layer's normalised output and each layer's keys and values for the
        new tokens alone, `Float["B G L K"]` in their layout, for the caller to add to `past`.
        """
        ...

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32 for outputs of `decode`."""
        ...

    def head_params(self, params: Params) -> Params:
        """The parameters that `logits` reads."""
        ...

    def decoding_params(self, params: Params) -> Params:
        """Parameters that this backend decodes fastest with: some may stand in two layouts."""
        ...

    def int8_params(self, params: Params) -> Params:
        """Parameters that this backend decodes with in 8 bits. `decoding_params` returns them.

        Arrays of NumPy stay on the host.
        """
        ...


class TensorPath(NamedTuple):
    """Where a Hugging Face tensor stands in the parameter tree."""

    path: tuple[str, ...]
    transposed: bool = False
    """Torch stores the kernels of its linear layers `[out, in]`, this package `[in, out]`."""


@dataclasses.dataclass(frozen=True)
class About:
    """What users are told of a family."""

    name: str
    checkpoints: str
    """Which published checkpoints the family reads, and what of them is left out."""
    largest: str
    """The name of the largest of them."""
    dimensions: Mapping[str, Any]
    """The sizes in the `config.json` of the largest: a test builds its shapes."""


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture family as the registry in `pid_jax.models` knows it."""

    about: About
    model_types: tuple[str, ...]
    """The values of `model_type` in a `config.json` that it reads."""
    config_from_hf: Callable[[Mapping[str, Any]], Any]
    """Reads a `config.json` into the family's `Config`."""
    module: Callable[[Any, DTypeLike], Any]
    """Builds the Linen module, an `EncoderDecoder`, from a configuration and a dtype."""
    tensors: Callable[[Any], dict[str, TensorPath]]
    """For a configuration, each Hugging Face tensor name and its path."""
    aliases: Mapping[str, str]
    """Second names under which a checkpoint may repeat a tensor, and the first."""
    ignored: frozenset[str]
    """Tensors of published checkpoints that no computation reads."""
    rename: Callable[[str], str | None] = lambda name: name
    """The name in `tensors` or `aliases` of a checkpoint's tensor. None where it is left out."""
    module_name: Callable[[str], str] = lambda name: name
    """The name of a module in transformers, from the first part of the names of its tensors."""
    unreadable_tokens: Callable[[Any], Mapping[int, str]] = lambda config: {}
    """For a configuration, token ids that stand for more than text, and why to refuse each."""
    defaults: Mapping[str, Callable[[tuple[int, ...]], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    """Tensors that a checkpoint may lack, and what makes them in a shape."""
    prefix: str = ""
    """The prefix of most tensors' names, unless a checkpoint was saved without a head."""
