"""Settings of ``hydra/launcher``: where the jobs of a multirun run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Strict

from medseg.settings.base import Count, Sparse, Text, UserPath


class LauncherSettings(Sparse):
    """The keys of ``configs/hydra/launcher``."""

    cluster: Literal["slurm", "local"]
    folder: UserPath
    timeout_min: Count
    gpus_per_node: Annotated[int, Ge(0), Le(64)]
    cpus_per_task: Annotated[int, Ge(1), Le(1024)] | None = None
    mem_gb: Annotated[float, Gt(0), Le(1e6)] | None = None
    nodes: Annotated[int, Ge(1), Le(1000)] | None = None
    tasks_per_node: Annotated[int, Ge(1), Le(1024)] | None = None
    name: Text | None = None
    slurm_partition: Text | None = None
    slurm_account: Text | None = None
    slurm_qos: Text | None = None
    slurm_array_parallelism: Count | None = None
    slurm_setup: Annotated[tuple[Text, ...], Strict(False)] | None = None
    slurm_additional_parameters: dict[str, Any] | None = None
