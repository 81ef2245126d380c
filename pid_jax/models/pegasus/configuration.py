"""PEGASUS's configuration: BART's with norms before each part and sinusoidal positions.

Zhang et al., arXiv 1912.08777.
"""

import dataclasses
from typing import ClassVar

from pid_jax.models.bart.configuration import BartLikeConfig


@dataclasses.dataclass(frozen=True)
class PegasusConfig(BartLikeConfig):
    """A PEGASUS `config.json`."""

    model_type: str = "pegasus"
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    architecture: ClassVar[str] = "PegasusForConditionalGeneration"
    norm_first: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = False
    final_norm: ClassVar[bool] = True
    sinusoidal: ClassVar[bool] = True
