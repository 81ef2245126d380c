"""Checkpoints of training runs, written with Orbax.

`<workdir>/checkpoints/<step>/` has "state" (a dict of params, opt_state, step and key, and ema for
an average of params), "data" (the position of the data: the number of the next batch, whatever the
number of processes) and, after an evaluation, "metrics". Parameters that training does not change
are in `<workdir>/checkpoints/frozen` (`pid_jax.checkpoints.frozen`).

Orbax writes a checkpoint in `.saving`, all processes their shares of the state. The first process
renames it to its final path when its manifest is complete, and renames it before it deletes it. So
every visible checkpoint is complete, even after the run was killed. A reader locks a checkpoint,
which defers its deletion. `pid_jax.checkpoints.verification` says what is verified.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from orbax.checkpoint import v1 as ocp

from pid_jax import directory_lock
from pid_jax.checkpoints import (
    contents,
    manifest,
    position,
    ranking,
    verification,
)
from pid_jax.checkpoints.contents import CHECKPOINTS, saved_steps
from pid_jax.distributed import exchange, service
from pid_jax.errors import UserError

T = TypeVar("T")

CONFIG = "config.json"
MODEL = "model"
_UNFINISHED = "*.orbax-checkpoint-tmp*"
_SAVING = ".saving"
_REMOVING = ".removing-"
_REPLACED = ".replaced-"
_DAMAGED = "damaged-"

log = logging.getLogger(__name__)


class RunCheckpoints:
    """The checkpoints of one run: saves in the background, preserves the most recent and the best.

    `save` and `wait` delete all others. Only one run may use it at a time. All processes of the run
    must call the same members in the same order.
    """

    def __init__(
        self, workdir: str | Path, *, recent: int, best_metric: str, resume_after: int | None = None
    ) -> None:
        """recent: number of most recent checkpoints to preserve.

        best_metric: the metric of `save` that selects the best checkpoint. The lowest "loss" and
        the highest of any other metric is best. resume_after: renames later checkpoints to
        `damaged-<step>`, out of the way of new ones.
        """
        self.workdir = Path(workdir)
        """That of the run."""
        self._recent = recent
        self._best_metric = best_metric
        self._directory = (Path(workdir) / CHECKPOINTS).absolute()
        exchange.of_first(lambda: self._clear(resume_after))
        self._checkpointer = ocp.training.Checkpointer(
            self._directory / _SAVING,
            preservation_policy=ocp.training.preservation_policies.PreserveAll(),
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finishing: Future[None] | None = None
        self._latest: Future[None] | None = None

    def _clear(self, resume_after: int | None) -> None:
        """Removes partially written and partially deleted checkpoints of a killed run.

        Also those that earlier versions wrote elsewhere. Renames checkpoints after `resume_after`.
        """
        for pattern in (_SAVING, _UNFINISHED, f"{_REMOVING}*"):
            for unfinished in self._directory.glob(pattern):
                shutil.rmtree(unfinished)
        if resume_after is not None:
            for step in saved_steps(self.workdir):
                if step > resume_after:
                    _set_aside(self._directory / str(step))

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, the latest of equals, None before an evaluation.

        Does not consider checkpoints whose metrics are damaged.
        """
        return ranking.ranked(self.workdir, self._best_metric).best

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        data: position.Positioned,
        metrics: Mapping[str, float] | None = None,
        lower_is_better: Sequence[str] = (),
    ) -> None:
        """Copies the state and the position of the data, then writes them in the background.

        The caller may immediately donate the buffers of the state. `wait` returns when the
        checkpoint is complete. metrics: those of an evaluation at this step. A checkpoint of this
        step without them is replaced. lower_is_better: metrics whose lowest value is best, besides
        "loss".
        """
        self.wait()
        response = self._checkpointer.save_checkpointables_async(
            step,
            {"state": dict(state), position.DATA: position.SavedPosition(data)},
            force=True,
            metrics=None if metrics is None else ranking.with_order(metrics, lower_is_better),
            custom_metadata=verification.MARKER,
        )
        self._finishing = self._latest = self._thread.submit(self._finish, step, response)

    def _finish(self, step: int, response: Any) -> None:
        """Waits for Orbax, writes the manifest, then makes the checkpoint visible."""
        response.result()  # in the first process, the shares of all processes are on disk
        if not service.is_first():
            return
        saved, final = self._directory / _SAVING / str(step), self._directory / str(step)
        verification.write_manifest(saved, self.workdir)
        if final.exists():
            _replace(final, saved)
        else:
            saved.rename(final)

    def restore(
        self, step: int, abstract_state: Mapping[str, Any], data: position.Positioned
    ) -> dict[str, Any]:
        """The state saved at `step`. Restores the position of `data`.

        abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings. Raises UserError if the
        checkpoint has no manifest and cannot be read.
        """
        path = self._directory / str(step)
        with readable(path):
            restored = ocp.load_checkpointables(path, {"state": dict(abstract_state)})
            position.restore(path, data)
        return restored["state"]

    def wait(self) -> None:
        """Returns when all saved checkpoints are on disk. Raises the errors of writing them."""
        if self._finishing is not None:
            finishing, self._finishing = self._finishing, None
            finishing.result()
        self._checkpointer.wait()
        # Without the exchange, a process could end while the first one writes the manifest.
        exchange.of_first(self._remove_others)

    def _remove_others(self) -> None:
        preserved = saved_steps(self.workdir)[-self._recent :]
        ranked = ranking.ranked(self.workdir, self._best_metric)
        for step in saved_steps(self.workdir):
            if step not in (*preserved, ranked.best, *ranked.damaged):
                _remove(self._directory / str(step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            try:
                if self._finishing is not None:
                    self._finishing.result()
            finally:
                self._close()
        elif service.count() == 1 or not self._save_failed:
            # Another error is being raised, and may be that of the save. Orbax would wait for
            # other processes, which wait for the share of this one.
            with suppress(Exception):
                self._close()

    @property
    def _save_failed(self) -> bool:
        return self._latest is not None and self._latest.exception() is not None

    def _close(self) -> None:
        try:
            self._checkpointer.close()
        finally:
            if service.is_first():
                shutil.rmtree(self._directory / _SAVING, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, unless a process reads it."""
    with directory_lock.unread(checkpoint) as unread:
        if unread:
            removed = checkpoint.rename(checkpoint.with_name(f"{_REMOVING}{checkpoint.name}"))
            shutil.rmtree(removed)


def _replace(checkpoint: Path, new: Path) -> None:
    """Puts `new` in the place of a checkpoint with the same state, unless a process reads it.

    After a kill between the two moves, `recover_replaced` moves the old one back.
    """
    with directory_lock.unread(checkpoint) as unread:
        if unread:
            old = checkpoint.rename(checkpoint.with_name(f"{_REPLACED}{checkpoint.name}"))
            new.rename(checkpoint)
            shutil.rmtree(old)


def recover_replaced(workdir: str | Path) -> None:
    """Completes or undoes the replacement of a checkpoint that a kill interrupted."""
    for replaced in (Path(workdir) / CHECKPOINTS).glob(f"{_REPLACED}*"):
        checkpoint = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if checkpoint.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(checkpoint)


def _set_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
    if aside.exists():  # of an earlier time
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    log.warning("%s: renamed to %s", checkpoint, aside.name)


def run_config(workdir: str | Path) -> dict[str, Any]:
    """The configuration of a run. Raises UserError if it cannot be read or is damaged."""
    path = Path(workdir) / CONFIG
    manifest.check_file(path.parent, CONFIG)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the run's configuration cannot be read: {error}") from error


def trained_method(checkpoint: str | Path) -> Literal["pid", "pie"]:
    """The method of a run, or "pid" if `checkpoint` is not that of a run."""
    run = contents.run_of(checkpoint)
    return "pid" if run is None else run_config(run.workdir)["method"]


def read_checkpoint(
    workdir: str | Path,
    step: Literal["best", "last"] | int,
    read: Callable[[Path], T],
    *,
    verify: bool = True,
) -> T:
    """The result of `read` for the directory of a checkpoint, locked against deletion.

    Retries with the current checkpoint if a training run deletes it first. verify: reads all files
    first, to compare them with their manifests. Raises UserError if there is no such checkpoint,
    and Damaged, which names an intact checkpoint, if it is damaged.
    """
    for _ in range(100):
        path = checkpoint_path(workdir, step)
        with directory_lock.reading(path) as there:
            if there:
                try:
                    if verify:
                        _verify(path)
                    return read(path)
                except Exception:
                    if path.is_dir():
                        raise
                    # Deleted, on a file system without locks.
        time.sleep(0.01)
    raise UserError(f"{path}: checkpoints are deleted faster than they can be read")


def _verify(path: Path) -> None:
    """Raises Damaged for damage to a checkpoint or to the description of its run."""
    workdir = path.parents[1]
    if wrong := verification.problems(path):
        other = verification.newest_intact(workdir, except_for=int(path.name)).step
        raise manifest.Damaged(
            f"{path} is damaged: {manifest.listed(wrong)}. "
            + (
                f"The newest intact checkpoint is {path.with_name(str(other))}: name it instead"
                if other is not None
                else "No other checkpoint is intact: restore the files from a copy"
            )
        )
    if wrong := verification.problems_of_description(workdir, path):
        raise manifest.Damaged(
            f"{workdir} is damaged: {manifest.listed(wrong)}. Restore it from a copy. Otherwise "
            f"train.py with --other-data writes {CONFIG} again and accepts the files in {MODEL}/"
        )


def _no_ranking(workdir: Path, damaged: Mapping[int, str]) -> manifest.Damaged:
    problem = damaged[max(damaged)]
    intact = verification.newest_intact(workdir).step
    return manifest.Damaged(
        f"{problem}. So the best checkpoint is unknown: "
        + (
            f"name one, for example the newest intact, {workdir / CHECKPOINTS / str(intact)}"
            if intact is not None
            else "restore the file from a copy"
        )
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns errors of reading a checkpoint without a manifest into a UserError.

    Damage to others is detected before.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (path / manifest.FILE).exists() or not path.is_dir() or "RESOURCE_EX" in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}). It may be damaged: an "
            "earlier version wrote it, without a manifest. Name another checkpoint, or rename this "
            "one to continue the run from an earlier one"
        ) from error


def checkpoint_path(workdir: str | Path, step: Literal["best", "last"] | int = "best") -> Path:
    """The directory of one checkpoint of a run. Raises UserError if it does not exist."""
    workdir = Path(workdir).absolute()
    directory = workdir / CHECKPOINTS
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet (nothing in {directory})")
    match step:
        case "last":
            chosen = steps[-1]
        case "best":
            ranked = ranking.ranked(workdir, run_config(workdir)["checkpoint"]["best_metric"])
            if ranked.damaged:
                raise _no_ranking(workdir, ranked.damaged)
            chosen = steps[-1] if ranked.best is None else ranked.best
        case int() if step in steps:
            chosen = step
        case _:
            listed = ", ".join(map(str, steps))
            raise UserError(f"{workdir} has no checkpoint of step {step}: there are {listed}")
    return directory / str(chosen)
