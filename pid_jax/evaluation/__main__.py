"""`python -m pid_jax.evaluation`: the same program as `pid-jax eval`."""

from pid_jax.evaluation import main

main()
