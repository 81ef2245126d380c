"""BART (Lewis et al., arXiv 1910.13461): norms after each part, learned positions."""

import dataclasses
from typing import ClassVar

from pid_jax.models import bart_layers


@dataclasses.dataclass(frozen=True)
class BartConfig(bart_layers.BartLikeConfig):
    """A BART `config.json`."""

    model_type: str = "bart"

    architecture: ClassVar[str] = "BartForConditionalGeneration"
    norm_first: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False


FAMILY = bart_layers.family(BartConfig, "bart")
