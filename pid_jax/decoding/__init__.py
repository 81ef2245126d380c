"""How outputs are selected, over documents and prompts at once, as pure functions."""

from pid_jax.decoding.decode import decode, decode_step
from pid_jax.decoding.greedy import GreedyOutputs, decode_greedily
from pid_jax.decoding.prefill import prefill

__all__ = ["GreedyOutputs", "decode", "decode_greedily", "decode_step", "prefill"]
