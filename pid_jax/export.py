"""A checkpoint written in the Hugging Face layout; also `python -m pid_jax.export`."""

from collections.abc import Sequence
from pathlib import Path

from pid_jax.checkpoints import contents, huggingface, peft
from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    adapter_only: bool = False,
) -> None:
    """Loads `checkpoint` as `PidModel.from_pretrained` does and writes it to `output`.

    adapter_only: writes the adapter of a training run in the layout of PEFT, and no model. Raises
    UserError for a directory that is not empty, unless `overwrite`: then files of the same names,
    older weights and an older tokenizer are replaced, and everything else is left alone. Raises
    UserError for `adapter_only` if there is no adapter, or no base model that transformers loads.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: name a directory to export to")
    if contents.is_run(output):
        raise UserError(f"{output} is a training run: name another directory to export to")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UserError(
            f"{output} is not empty: name another directory, or pass --overwrite to replace "
            "the model in it"
        )
    if adapter_only:
        _export_adapter(checkpoint, output)
        return
    model = PidModel.from_pretrained(checkpoint, dtype="auto")
    model.save_pretrained(output)


def _export_adapter(checkpoint: str | Path, output: Path) -> None:
    from pid_jax.checkpoints import orbax, trained_model  # import Orbax

    merged = "Export the merged model, without --adapter"
    run = contents.run_of(checkpoint)
    if run is None:
        raise UserError(f"{checkpoint} is not a training run, so it has no adapter to export")
    config = orbax.run_config(run.workdir)
    adapter = trained_model.adapter_of(config)
    if adapter is None:
        raise UserError(f"{run.workdir} was trained without an adapter (config.adapter.rank=0)")
    base = config["model"]["init"]
    if not base:
        raise UserError(
            f"{run.workdir} started from random parameters (config.model.init is empty), so that "
            f"no base model can be named. {merged}"
        )
    if contents.run_of(base) is not None or peft.is_adapter(Path(base)):
        raise UserError(
            f"{run.workdir} started from {base} (config.model.init), which transformers does not "
            f"load as a base model. {merged}"
        )
    matrices = trained_model.load_adapter(run.workdir, run.step)
    architecture = huggingface.read_config(run.workdir / orbax.MODEL)
    peft.save(output, architecture, base, adapter, matrices)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `pid-jax export`."""
    from pid_jax.commands import export as command

    command.main(arguments, program="python -m pid_jax.export")


if __name__ == "__main__":
    main()
