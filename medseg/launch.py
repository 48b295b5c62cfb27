"""Where the jobs of ``--multirun`` run when a launcher is named: a SLURM job array, or processes of this machine.

``hydra/launcher=slurm`` is Hydra's way to say it, submitit does it; each job is a ``medseg`` command of its own,
so that its messages and its exit code are those of the command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from medseg.compose import compose_launcher
from medseg.errors import ResourceError, UsageError

LAUNCHER = ("hydra/launcher=", "hydra.launcher.")
LOST = 4  # the exit code of a job that the cluster ended: out of time or memory, or a node that failed


def split_launcher(words: Sequence[str]) -> tuple[list[str], dict[str, Any] | None]:
    """The words about the jobs themselves, and the launcher's settings where the other words name one.

    Raises:
        UsageError: a launcher or a setting that is not known, or a setting without a launcher.
    """
    own = [word for word in words if word.startswith(LAUNCHER)]
    rest = [word for word in words if word not in own]
    return rest, compose_launcher(own) if own else None


def launch(verb: str, jobs: Sequence[Sequence[str]], settings: Mapping[str, Any]) -> int:
    """Send the jobs, wait for all of them, and say of each where its log is.

    Args:
        verb: of all jobs.
        jobs: the words of each.
        settings: of `configs/hydra/launcher`.

    Returns:
        The worst exit code.

    Raises:
        UsageError: submitit is not installed, or does not know a setting.
        ResourceError: no SLURM on this machine, or it refuses the jobs.
    """
    executor = make_executor(settings)
    import submitit

    try:
        sent = executor.map_array(run_words, [[verb, *words] for words in jobs])
    except (OSError, submitit.core.utils.FailedJobError) as error:
        raise ResourceError(f"the jobs were not taken: {error}", fix="check hydra.launcher settings") from error
    print(
        f"medseg: {len(sent)} jobs sent to {settings['cluster']}: {', '.join(job.job_id for job in sent)}", flush=True
    )
    return max(_outcome(job, words) for job, words in zip(sent, jobs, strict=True))


def make_executor(settings: Mapping[str, Any]) -> Any:
    """submitit's executor with the settings that are not null."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError("hydra/launcher needs submitit", fix='pip install "medseg[slurm]"') from error
    given = {key: value for key, value in settings.items() if value is not None and key not in ("cluster", "folder")}
    try:
        executor = submitit.AutoExecutor(settings["folder"], cluster=settings["cluster"])
        executor.update_parameters(**given)
    except RuntimeError as error:
        raise ResourceError(f"there is no {settings['cluster']} here: {error}", fix="run it on a login node") from error
    except (NameError, TypeError, ValueError) as error:
        raise UsageError(f"hydra.launcher: {error}", fix="see configs/hydra/launcher") from error
    return executor


def run_words(words: Sequence[str]) -> int:
    """One job, on its node: ``medseg`` with these words; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "medseg.cli", *words], env=dict(os.environ), check=False).returncode


def _outcome(job: Any, words: Sequence[str]) -> int:
    import submitit

    try:
        code = int(job.result())
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
        code = LOST
    print(f"medseg: job {job.job_id} ended with {code}: {' '.join(words)} (log: {job.paths.stdout})", flush=True)
    return code
