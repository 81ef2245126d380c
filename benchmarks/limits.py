"""Lower limits on the time of a workload: arithmetic and memory traffic, counted from shapes.

A multiplication and an addition are 2 FLOPs. Only matrix products count, and only memory traffic
that a cache cannot avoid. So an engine of the same precision approaches the limit and never falls
below it, if the measured rates are the machine's maximum.

Letters: B documents of S tokens, P prompts of L tokens (including the start token), T new
tokens, R = B·P rows, N layers, D model width, A = H·K for H heads of width K, F feed-forward width
(G = 1 product into it, 2 if gated), V vocabulary, i bytes per number. The FLOPs of a token in a
layer, without the keys and values of the document:

    projections   2·4·D·A          query, key, value, output
    feed-forward  2·(G + 1)·D·F
    attention     2·2·A·t          scores and values over t tokens

    phase            FLOPs                                        bytes
    encoder          N·B·S·(projections + feed-forward            encoder weights
                       + attention over S)
    cross_attention  N·B·S·2·2·D·A                                K/V weights, K/V
    prompts          N·R·L·(projections + 2·2·D·A + feed-forward  decoder weights, head, K/V, cache
                       + attention over S) + N·R·2·2·A·L(L+1)/2
                       + R·2·D·V
    steps, T-1 of    N·R·(projections + 2·2·D·A + feed-forward    decoder weights, head, K/V, cache
    them; step k       + attention over S and L + k) + R·2·D·V

with decoder weights N·i·(6·D·A + (G + 1)·D·F), head i·D·V, K/V N·i·2·B·S·A, cache
N·i·2·R·A·(L + k). The prefill of the prompts yields the first new token. The time of each phase
and of each step is the maximum of FLOPs / matrix-product rate and bytes / memory bandwidth.

The limit of prompt in encoder is that of R documents of S + L - 1 tokens with one prompt each,
which is the start token.
"""

from typing import NamedTuple

from benchmarks.workloads import Workload
from pid_jax.models.t5 import T5Config


class Rates(NamedTuple):
    """The maximum rates of a machine."""

    flops_per_second: float
    bytes_per_second: float


class Demand(NamedTuple):
    """FLOPs of a phase, and bytes that it moves between memory and processor."""

    flops: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        return max(self.flops / rates.flops_per_second, self.bytes / rates.bytes_per_second)


def as_prompt_in_encoder(workload: Workload) -> Workload:
    """The equivalent workload under prompt in encoder: more and longer documents."""
    return Workload(
        workload.model,
        documents=workload.documents * workload.prompts,
        document_tokens=workload.prompt_tokens + workload.document_tokens,
        prompts=1,
        prompt_tokens=0,
        new_tokens=workload.new_tokens,
    )


def demands(config: T5Config, workload: Workload, itemsize: int) -> dict[str, list[Demand]]:
    """The passes of each phase, in order, for prompt in decoder. The module has the formulas."""
    width, attention_width = config.d_model, config.num_heads * config.d_kv
    feed_forward = (2 if config.is_gated_act else 1) + 1
    feed_forward *= width * config.d_ff
    square = width * attention_width
    document_tokens = workload.documents * workload.document_tokens
    rows = workload.documents * workload.prompts
    prompt = 1 + workload.prompt_tokens

    encoder_weights = config.num_layers * (4 * square + feed_forward)
    layers = config.num_decoder_layers
    decoder_weights = layers * (6 * square + feed_forward)
    head = width * config.vocab_size
    keys_and_values = layers * 2 * document_tokens * attention_width

    def decoder_pass(tokens: int, attended: int, length: int) -> Demand:
        """A pass over `tokens` new tokens per row.

        attended: number of self-attention scores per row. length: tokens in the cache per row.
        """
        over_document = 4 * attention_width * workload.document_tokens * tokens
        per_row = layers * (
            2 * tokens * (6 * square + feed_forward)
            + over_document
            + 4 * attention_width * attended
        )
        cache = layers * 2 * rows * attention_width * length
        moved = decoder_weights + head + keys_and_values + cache
        return Demand(rows * (per_row + 2 * head), itemsize * moved)

    encoder = document_tokens * (
        2 * encoder_weights + config.num_layers * 4 * attention_width * workload.document_tokens
    )
    return {
        "encoder": [Demand(encoder, itemsize * encoder_weights)],
        "cross_attention": [
            Demand(
                layers * document_tokens * 4 * square,
                itemsize * (layers * 2 * square + keys_and_values),
            )
        ],
        "prompts": [decoder_pass(prompt, prompt * (prompt + 1) // 2, prompt)],
        "steps": [
            decoder_pass(1, prompt + step, prompt + step) for step in range(1, workload.new_tokens)
        ],
    }


def limit(
    config: T5Config, workload: Workload, method: str, itemsize: int, rates: Rates
) -> dict[str, float]:
    """Seconds per phase, and their sum as `total`. method: "pid" or "pie"."""
    equivalent = as_prompt_in_encoder(workload) if method == "pie" else workload
    seconds = {
        phase: sum(demand.seconds(rates) for demand in passes)
        for phase, passes in demands(config, equivalent, itemsize).items()
    }
    return {**seconds, "total": sum(seconds.values())}
