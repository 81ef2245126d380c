"""The model of a prediction run, loaded when the first answer needs it."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax

from pid_jax.checkpoints import contents
from pid_jax.checkpoints.agreed import agreed
from pid_jax.data.examples import Example
from pid_jax.decoding.report import DecodingReport
from pid_jax.distributed import service
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation, NotComputable
from pid_jax.prediction.progress import PredictionProgress
from pid_jax.prediction.settings import Settings


class Checkpoint:
    """Answers examples. `report` is filled with what was decoded."""

    def __init__(self, settings: Settings, progress: PredictionProgress) -> None:
        self._settings = settings
        self._progress = progress
        self.report = DecodingReport()
        self.digest: str | None = None
        """Of the checkpoint that the output names as the source of its answers."""

    @functools.cached_property
    def _model(self) -> PidModel:
        path, settings = agreed(self._settings.checkpoint), self._settings
        model = PidModel.from_pretrained(
            path, dtype=settings.dtype, weights=settings.weights, mesh=settings.mesh
        )
        # The files of a hub id are fetched once and stay as they are.
        if self.digest is not None and Path(path).is_dir():
            from pid_jax.checkpoints import identity  # imports Orbax

            if identity.digest(path) != self.digest:
                run = contents.run_of(path)
                better = run is not None and run.step == "best"
                what = "has got a better checkpoint" if better else "was replaced"
                raise UserError(f"{path} {what} since this command started: run it again")
        if model.tokenizer is None:
            raise UserError(
                f"{path} has no tokenizer, so it cannot read text: put "
                "tokenizer.json or spiece.model there, or use PidModel.generate with token ids"
            )
        # Options that do not fit are refused here, so that no document is blamed for them.
        model.generate([], [], **settings.batches, **settings.generation)
        own = {k: v for k, v in model.generation_defaults.items() if k not in settings.generation}
        if own:
            listed = ", ".join(f"{name}={value}" for name, value in own.items())
            self._progress.print(f"defaults of {path}: {listed}")
        return model

    def __call__(self, examples: Sequence[Example]) -> list[list[Generation]]:
        """The answers, nested as the subtasks. Raises UserError naming documents by their ids."""
        model = self._model
        where = f"documents {examples[0].id!r} to {examples[-1].id!r}"
        allowed = [[subtask.allowed for subtask in example.subtasks] for example in examples]
        constrained = any(texts is not None for row in allowed for texts in row)
        try:
            return model.generate(
                [example.document for example in examples],
                [[subtask.prompt for subtask in example.subtasks] for example in examples],
                allowed=allowed if constrained else None,
                progress=False,
                after_batch=self._progress.after_batch,
                report=self.report,
                processes=service.count() > 1,
                **self._settings.batches,
                **self._settings.generation,
            )
        except NotComputable as error:
            example = examples[error.document]
            raise error.named(example.id, example.subtasks[error.prompt].id) from error
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                if service.count() > 1:  # the others wait for this one
                    raise UserError(
                        f"{where}: the memory does not suffice: pass a smaller --batch-tokens"
                    ) from error
                if len(examples) > 1:  # one of them may be too long for any batch: which?
                    return [self([example])[0] for example in examples]
                raise UserError(
                    f"document {examples[0].id!r}: the memory does not suffice for it alone: "
                    "shorten it, give it fewer prompts, or leave it out"
                ) from error
            raise
