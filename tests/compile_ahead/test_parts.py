"""The part of the model that a name stands for."""

import pytest

from pid_jax.compile_ahead.parts import PARTS, part_of_name

STEP = "jit(decode)/while/body/"
ENCODER = "jit(train_step)/jvp(T5.encode)/encoder/layers_3/"
BACKWARD = "jit(train_step)/transpose(jvp(vmap(T5.decode)))/decoder/layers_3/"


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        (ENCODER + "self_attention.of_documents/self_attention/dot_general", "encoder attention"),
        ("jit(encode)/T5.encode/encoder/relative_position_bias_0/gather", "encoder attention"),
        (ENCODER + "feed_forward/wi/wi._product/dot_general", "feed-forward"),
        (
            ENCODER + "layers_3.normed_feed_forward/feed_forward_norm/mul",
            "feed-forward",
        ),
        (
            BACKWARD + "layers_3/checkpoint/layers_3.normed_feed_forward/feed_forward/dropout/mul",
            "feed-forward",
        ),
        (BACKWARD + "cross_attention/...lk,...ks->...ls/dot_general", "cross-attention"),
        (
            "jit(train_step)/jvp(T5.project_cross_attention)/decoder.project_cross_attention/"
            "cross_attention.project/key/key._product/dot_general",
            "cross-attention",
        ),
        (STEP + "vmap(T5.decode)/decoder/layers_0/self_attention/reduce_max", "self-attention"),
        (STEP + "vmap(T5.decode)/decoder/relative_position_bias_0/gather", "self-attention"),
        (STEP + "T5.logits/T5.logits/dot_general", "head"),
        (STEP + "top_k", "token selection"),
        ("jit(train_step)/jvp()/reduce_sum", "loss"),
        ("jit(train_step)/transpose(jvp())/add_any", "other"),
        ("jit(train_step)/pow", "optimizer"),
        ("jit(train_step)/jit(_threefry_fold_in)/train_step/xor", "other"),
        ("jit(train_step)/jvp(T5.encode)/encoder/final_norm/mul", "other"),
        ("", "other"),
    ],
)
def test_the_part_that_a_name_stands_for(op_name: str, part: str) -> None:
    assert part in PARTS
    assert part_of_name(op_name) == part
