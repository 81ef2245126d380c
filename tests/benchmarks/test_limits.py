"""FLOPs, bytes and seconds against numbers worked by hand."""

import pytest

from benchmarks.limits import Demand, Rates, as_prompt_in_encoder, demands, limit
from benchmarks.workloads import WORKLOADS, Workload, model_config
from pid_jax.models.t5 import T5Config

# Every size differs, so that a wrong letter in a formula gives a wrong number.
SMALL = T5Config(
    vocab_size=11, d_model=2, d_kv=3, d_ff=5, num_layers=1, num_decoder_layers=2, num_heads=1
)
WORKLOAD = Workload(
    "small", documents=1, document_tokens=4, prompts=3, prompt_tokens=1, new_tokens=3
)


def test_each_document_token_is_encoded_once() -> None:
    # A token: 2·4·2·3 = 48 projections, 2·2·2·5 = 40 feed-forward, 4·3·4 = 48 attention; 4 tokens.
    # Weights: 4·2·3 + 2·2·5 = 44 numbers of 4 bytes.
    assert demands(SMALL, WORKLOAD, 4)["encoder"] == [Demand(4 * 136, 4 * 44)]


def test_keys_and_values_are_projected_once_per_document() -> None:
    # 2 layers · 4 tokens · 2 products of 2·2·3 FLOPs; 2·2·2·3 weights and 2·2·4·3 keys and values.
    assert demands(SMALL, WORKLOAD, 4)["cross_attention"] == [Demand(2 * 4 * 2 * 12, 4 * (24 + 48))]


def test_the_prompts_pass_reads_weights_head_and_document_once() -> None:
    # A row has 2 tokens; in each of 2 layers a token costs 2·(6·6 + 20) = 112 and 4·3·4 = 48 over
    # the document; they attend to 1 + 2 tokens at 4·3; the head costs 2·2·11 once.
    flops = 3 * (2 * (2 * 112 + 2 * 48 + 3 * 12) + 44)
    # Weights 2·(36 + 20), head 22, keys and values 2·2·4·3, cache 2·2·3 rows·3·2 tokens.
    assert demands(SMALL, WORKLOAD, 4)["prompts"] == [Demand(flops, 4 * (112 + 22 + 48 + 72))]


def test_each_step_attends_to_one_token_more() -> None:
    # As above with one token a row, which attends to 3 tokens, then to 4.
    expected = [
        Demand(3 * (2 * (112 + 48 + 12 * past) + 44), 4 * (112 + 22 + 48 + 36 * past))
        for past in (3, 4)
    ]
    assert demands(SMALL, WORKLOAD, 4)["steps"] == expected


def test_a_gated_feed_forward_has_a_third_product() -> None:
    gated = T5Config(
        vocab_size=11,
        d_model=2,
        d_kv=3,
        d_ff=5,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=1,
        is_gated_act=True,
    )
    assert demands(gated, WORKLOAD, 4)["encoder"] == [Demand(4 * (48 + 60 + 48), 4 * 54)]


def test_prompt_in_encoder_encodes_prompt_and_document_for_every_prompt() -> None:
    workload = as_prompt_in_encoder(WORKLOAD)
    assert workload == Workload("small", 3, 5, 1, 0, 3)
    # Now 15 document tokens with 4·3·5 of attention each.
    assert demands(SMALL, workload, 4)["encoder"] == [Demand(15 * (48 + 40 + 60), 4 * 44)]


def test_a_pass_takes_the_longer_of_its_arithmetic_and_its_traffic() -> None:
    rates = Rates(flops_per_second=10.0, bytes_per_second=100.0)
    assert Demand(50, 200).seconds(rates) == 5.0
    assert Demand(10, 200).seconds(rates) == 2.0


def test_the_total_is_the_sum_of_the_phases() -> None:
    # One byte and one FLOP a second: every phase of this model moves less than it computes.
    found = limit(SMALL, WORKLOAD, "pid", 1, Rates(1.0, 1.0))
    assert found["encoder"] == 544
    assert found["total"] == 544 + 192 + 3 * 756 + 3 * (436 + 460)


@pytest.mark.parametrize(("name", "seconds"), [("dst", 0.6), ("note", 2.9), ("qa", 0.4)])
def test_limits_are_near_the_estimates_made_beforehand(name: str, seconds: float) -> None:
    """Those were for 360 GFLOP/s and a bandwidth that was not written down: 45 GB/s is usual."""
    workload = WORKLOADS[name]
    config = T5Config.from_hf(model_config(workload.model))
    found = limit(config, workload, "pid", 4, Rates(360e9, 45e9))
    assert found["total"] == pytest.approx(seconds, rel=0.2)
