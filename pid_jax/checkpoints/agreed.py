"""The checkpoint that all processes of a run load."""

from pid_jax.checkpoints import contents
from pid_jax.distributed import exchange, service


def agreed(checkpoint: str) -> str:
    """The checkpoint under a name that means the same in all processes.

    A training run may gain a better checkpoint at any time. The first process selects its best one.
    """
    if service.count() == 1:
        return checkpoint

    def selected() -> str:
        from pid_jax.checkpoints import orbax  # slow to import

        run = contents.run_of(checkpoint)
        if run is None or run.step != "best":
            return checkpoint
        return str(orbax.checkpoint_path(run.workdir))

    return exchange.of_first(selected)
