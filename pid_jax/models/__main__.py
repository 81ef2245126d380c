"""`python -m pid_jax.models`: prints the table of families."""

from pid_jax import models

if __name__ == "__main__":
    print(models.table())
