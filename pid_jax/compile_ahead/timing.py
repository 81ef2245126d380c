"""An estimate of time, with its assumptions."""

from dataclasses import dataclass

from pid_jax.chips import SECONDS_PER_KERNEL, Chip
from pid_jax.compile_ahead.estimate import ProgramEstimate


@dataclass(frozen=True)
class Timing:
    """Seconds on each device by several limits."""

    products: float
    """FLOPs of matrix products at the peak rate."""
    memory: float
    """Bytes of the kernels at the peak bandwidth."""
    collectives: float
    """Bytes of collectives at the bandwidth of one link."""
    cycles: float | None
    """The compiler's cycles at the chip's clock. None for a GPU."""
    kernels: float | None
    """`SECONDS_PER_KERNEL` for each kernel. None for a TPU."""

    @property
    def seconds(self) -> float:
        """The greatest of the limits, and collectives.

        The compiler's cycles for a TPU do not include prefetches, which run beside kernels.
        """
        limits = (self.cycles, self.kernels, self.products, self.memory)
        return max(limit for limit in limits if limit is not None) + self.collectives

    @property
    def share_of_peak(self) -> float:
        """Products at the peak rate, divided by the estimate."""
        return self.products / self.seconds if self.seconds else 0.0


def timing(estimate: ProgramEstimate, chip: Chip, devices: int) -> Timing:
    """The time of one run of a program, or of one decode step."""
    work = estimate.work
    moved = sum(one.bytes for one in estimate.collectives.values())
    is_tpu = chip.clock_hertz is not None
    return Timing(
        products=estimate.flops / devices / chip.flops_per_second,
        memory=work.bytes / chip.bytes_per_second,
        collectives=moved / chip.link_bytes_per_second,
        cycles=work.cycles / chip.clock_hertz if chip.clock_hertz is not None else None,
        kernels=None if is_tpu else work.kernels * SECONDS_PER_KERNEL,
    )
