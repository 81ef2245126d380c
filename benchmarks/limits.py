"""The least time a workload can take: its arithmetic and its memory traffic, counted from shapes.

A multiplication and an addition are 2 FLOPs. What is not a matrix product is left out, and so is
every byte that a cache could hold, so that an engine of the same precision comes near and, as far
as the measured rates are the machine's best, never below.

Letters: B documents of S tokens, P prompts of L tokens (the start token included), T new
tokens, R = B·P rows; N layers, D model width, A = heads · head width, F feed-forward width
(G = 1 product into it, 2 if gated), V vocabulary, i bytes per number. What a token costs in
a layer, keys and values of the document aside:

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
N·i·2·R·A·(L + k). The prompts' pass yields the first new token. Each phase, and each step, takes
the longer of FLOPs / matrix-product rate and bytes / memory bandwidth.

Prompt in encoder is the same with R documents of S + L - 1 tokens and one prompt each, of
the start token alone.
"""

from typing import NamedTuple

from benchmarks.workloads import Workload
from pid_jax.models.t5 import T5Config


class Rates(NamedTuple):
    """What a machine can do at best."""

    flops_per_second: float
    bytes_per_second: float


class Demand(NamedTuple):
    """What a phase must compute, and what it must move between memory and processor."""

    flops: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        return max(self.flops / rates.flops_per_second, self.bytes / rates.bytes_per_second)


def as_prompt_in_encoder(workload: Workload) -> Workload:
    """The workload that prompt in encoder makes of this one: more and longer documents."""
    return Workload(
        workload.model,
        documents=workload.documents * workload.prompts,
        document_tokens=workload.prompt_tokens + workload.document_tokens,
        prompts=1,
        prompt_tokens=0,
        new_tokens=workload.new_tokens,
    )


def demands(config: T5Config, workload: Workload, itemsize: int) -> dict[str, list[Demand]]:
    """Per phase its passes, in order, for prompt in decoder; see the module for the formulas."""
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
        """`tokens` more in every row; `attended` sums what they see of each other and the past."""
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
    """Seconds per phase, and their sum as `total`; method: "pid" or "pie"."""
    asked = as_prompt_in_encoder(workload) if method == "pie" else workload
    seconds = {
        phase: sum(demand.seconds(rates) for demand in passes)
        for phase, passes in demands(config, asked, itemsize).items()
    }
    return {**seconds, "total": sum(seconds.values())}
