"""`python -m pid_jax.compile_ahead`: the same program as `pid-jax compile-ahead`."""

from pid_jax.commands.compile_ahead import main

main(program="python -m pid_jax.compile_ahead")
