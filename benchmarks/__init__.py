"""Benchmarks of pid_jax against other libraries and against the limits of the machine."""
