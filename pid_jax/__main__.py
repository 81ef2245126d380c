"""`python -m pid_jax`: the same program as `pid-jax`."""

from pid_jax.commands.main import main

main(program="python -m pid_jax")
