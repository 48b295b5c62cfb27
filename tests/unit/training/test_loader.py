"""The stream of batches, and the case named when a worker is lost."""

import itertools
import multiprocessing
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from medseg.compose import known_keys
from medseg.errors import BadVoxels, ResourceError
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
        return {"case": case, "image": torch.zeros(1000)}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def hung():
    time.sleep(600)


def told_to_stop():
    """As a scheduler does: the whole group is told, and only the training itself may end."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), signum)


def refused():
    raise BadVoxels("voxel 3 is nan", case="c", path="/d/c.nii")


def batches(fault, workers=1, timeout=1.0):
    data = TrainingData(Patches(fault), workers=workers, timeout=timeout)
    data.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1)
    return data, iter(data.train_dataloader())


@pytest.mark.parametrize(("fault", "word"), [(killed, "died"), (hung, "hung"), (stopped, "hung")])
def test_a_lost_worker_is_named_with_its_case(fault, word):
    data, stream = batches(fault, timeout=50.0 if fault is killed else 1.0)  # of a worker that died torch tells at once
    start = time.monotonic()
    with pytest.raises(ResourceError, match=f"{word}.*while reading case c") as lost, data.name_lost_workers():
        list(itertools.islice(stream, 10))
    assert lost.value.exit_code == 4
    assert time.monotonic() - start < 60  # not the 600 s of the sleep
    assert not any(worker.is_alive() for worker in data.watch.workers)
    advice = re.search(r"set (data\.\w+)=0", str(lost.value))
    assert advice[1] in known_keys("train")


def test_without_workers_nothing_is_watched_and_no_process_is_started():
    """What the advice data.loader_workers=0 is for."""
    _, stream = batches(lambda: None, workers=0)
    assert [batch["case"] for batch in itertools.islice(stream, 4)] == [["a"], ["b"], ["c"], ["a"]]
    assert not multiprocessing.active_children()


def test_a_worker_that_is_stopped_between_two_batches_is_noticed():
    """Batches that it has announced are asked of it one by one: the wait for them has an end, too."""
    data, stream = batches(lambda: None)

    def stop_after_one():
        next(stream)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGSTOP)
        list(itertools.islice(stream, 50))

    with pytest.raises(ResourceError, match="a data worker hung"), data.name_lost_workers():
        stop_after_one()
    assert not multiprocessing.active_children()


def test_only_its_own_workers_are_ended():
    """medseg may run in a process that has children of its own, e.g. those of joblib."""
    waits = multiprocessing.get_context("spawn").Event()
    foreign = multiprocessing.get_context("spawn").Process(target=waits.wait, daemon=True)
    foreign.start()
    try:
        data, stream = batches(lambda: None)
        with data.name_lost_workers():
            assert len(list(itertools.islice(stream, 3))) == 3
        assert [worker.is_alive() for worker in data.watch.workers] == [False]
        assert foreign.is_alive()
    finally:
        waits.set()
        foreign.join()


def test_workers_outlive_signals_to_the_whole_group():
    data, stream = batches(told_to_stop)
    with data.name_lost_workers():
        assert len(list(itertools.islice(stream, 7))) == 7
        stream.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_in_a_worker_stays_one_line(workers):
    data, stream = batches(refused, workers)
    with pytest.raises(BadVoxels) as found, data.name_lost_workers():
        list(itertools.islice(stream, 5))
    assert str(found.value).strip() == "case c, /d/c.nii: voxel 3 is nan."


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
