"""The stream of batches, and the case named when a worker is lost."""

import itertools
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from medseg.errors import ResourceError
from medseg.training.loader import CaseWatch, StepStream, TrainingData, choose_loader_workers


def take(stream, n):
    return list(itertools.islice(iter(stream), n))


def test_a_resumed_stream_continues_the_unbroken_one():
    unbroken = take(StepStream(4, lambda: 0), 10)
    assert take(StepStream(4, lambda: 6), 4) == unbroken[6:]


def test_processes_share_every_step_without_overlap():
    parts = [take(StepStream(2, lambda: 0, rank=rank, world_size=3), 5) for rank in range(3)]
    together = [sorted(i for batch in step for i in batch) for step in zip(*parts, strict=True)]
    assert together == take(StepStream(6, lambda: 0), 5)


class Patches(torch.utils.data.Dataset):
    """Stands for a PatchDataset: announces its case, then does something to its worker on case "c"."""

    ids, batch_size = ["a", "b", "c"], 1

    def __init__(self, fault):
        self.fault = fault
        self.announce = lambda case: None

    def __getitem__(self, index):
        case = self.ids[index % 3]
        self.announce(case)
        if case == "c":
            self.fault()
        return {"case": case}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hung():
    time.sleep(600)


@pytest.mark.parametrize(("fault", "word"), [(killed, "died"), (hung, "hung")])
def test_a_lost_worker_is_named_with_its_case(fault, word):
    data = TrainingData(Patches(fault), workers=1, timeout=2)
    data.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1)
    start = time.monotonic()
    with pytest.raises(ResourceError, match=f"{word}.*while reading case c"), data.name_lost_workers():
        for _ in itertools.islice(data.train_dataloader(), 10):
            pass
    assert time.monotonic() - start < 60  # not the 600 s of the sleep


def test_other_errors_pass():
    data = TrainingData(Patches(killed), workers=0, timeout=2)
    with pytest.raises(RuntimeError, match="something else"), data.name_lost_workers():
        raise RuntimeError("something else")


def test_watch_before_the_first_case():
    assert CaseWatch(["a"], 2).current() == ["(none yet)"]


@pytest.mark.parametrize(("requested", "expected"), [(0, 0), ("3", 3), (-1, 0)])
def test_workers_as_asked(requested, expected):
    assert choose_loader_workers(requested, "cpu") == expected


def test_workers_by_memory(monkeypatch):
    monkeypatch.setattr("medseg.training.loader.free_memory", lambda: 2**29)
    assert choose_loader_workers("auto", "cuda") == 0
    monkeypatch.setattr("medseg.training.loader.free_memory", lambda: 2**40)
    assert choose_loader_workers("auto", "cpu") == 1
