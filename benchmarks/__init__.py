"""How fast pid_jax is beside its peers, and beside what the machine can do."""
