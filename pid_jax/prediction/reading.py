"""Checks of documents and prompts before the weights are loaded."""

from pathlib import Path

from pid_jax.checkpoints import contents, huggingface
from pid_jax.data.examples import Example
from pid_jax.decoding.options import GenerationOptions
from pid_jax.errors import UserError
from pid_jax.inference.generation_defaults import GenerationDefaults
from pid_jax.inference.request import RequestReader
from pid_jax.prediction.settings import Settings


class LineCheck:
    """Finds what the model cannot read, or cannot answer within its limits, line by line."""

    def __init__(
        self, settings: Settings, inputs: RequestReader, options: GenerationOptions
    ) -> None:
        self._method = settings.method
        self._inputs = inputs
        self._options = options
        self._admissible: set[tuple[str, ...]] = set()
        """Lists that were checked already. Documents often share them."""

    def __call__(self, example: Example, where: str) -> None:
        """Raises UserError, with `where`, for a text or a list that does not fit."""
        constrained = any(subtask.allowed is not None for subtask in example.subtasks)
        if self._inputs.any_text_fits and not constrained:
            return
        prompts = [subtask.prompt for subtask in example.subtasks]
        try:
            # A length of the checkpoint is cut to what prompts leave.
            new_tokens = self._options.limited_to(1).max_new_tokens
            self._inputs.check(example.document, prompts, self._method, new_tokens)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        for number, subtask in enumerate(example.subtasks, start=1):
            if subtask.allowed is not None and subtask.allowed not in self._admissible:
                self._inputs.allowed(
                    subtask.allowed,
                    f'{where}, subtask {number}: "allowed"',
                    min_new_tokens=self._options.min_tokens_of_allowed(),
                    max_new_tokens=self._options.max_new_tokens,
                )
                self._admissible.add(subtask.allowed)


def line_check(settings: Settings) -> LineCheck | None:
    """The check for a checkpoint, from its configuration and tokenizer.

    None where the checkpoint cannot be read: loading it says why. Raises UserError for options of
    generation that do not fit it.
    """
    path = Path(settings.checkpoint)
    run = contents.run_of(path)
    try:
        directory = huggingface.find(settings.checkpoint) if run is None else run.workdir / "model"
        config = huggingface.read_config(directory)
        tokenizer = huggingface.load_tokenizer(directory)
        defaults = GenerationDefaults(huggingface.read_generation(directory), config, quiet=True)
    except UserError:
        return None
    if tokenizer is None:
        return None
    inputs = RequestReader(config, tokenizer)
    chosen = {name: value for name, value in settings.generation.items() if name != "method"}
    options = defaults.options_with(chosen, constrained=True)
    inputs.check_new_tokens(options.max_new_tokens)
    return LineCheck(settings, inputs, options)
