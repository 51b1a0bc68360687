"""Processes: actions that run in one or in all, ranks of torchrun, and deaths."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch.distributed
from classifiers import SMALL, save_small_weights
from runs import command, config, results, run_command

from captum_unioncam.errors import ConfigError, is_known_to_all
from captum_unioncam.evaluation.distributed import Processes, processes
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that every process loads with the same weights."""
    weights = tmp_path_factory.mktemp("weights") / "small.pt"
    save_small_weights(weights)
    return {"model": SMALL, "weights": str(weights)}


@pytest.fixture(scope="module")
def options(small):
    return [f"--{name}={value}" for name, value in small.items()]


@pytest.fixture(scope="module")
def reference(images, small, tmp_path_factory, one_thread, no_pictures):
    """The results of one undisturbed process."""
    folder = tmp_path_factory.mktemp("reference")
    rows = evaluate(config(images, folder, **small))
    assert len(rows) == 10 and not any("error" in row for row in rows)
    return results(folder)


# Actions


class Pretended(Processes):
    """The second of two processes, of which the first one's outcome is given."""

    def __init__(self, *answers):
        super().__init__(rank=1, world_size=2)
        object.__setattr__(self, "answers", list(answers))

    def gather(self, value):
        return [self.answers.pop(0), value]


def broken():
    raise OSError("the disk is gone")


def test_one_process_is_the_first_and_has_everything():
    process = Processes()
    assert process.is_first
    assert process.shard([3, 1, 2]) == [3, 1, 2]
    assert process.gather("value") == ["value"]


def test_one_process_runs_an_action_and_returns_its_result():
    process, calls = Processes(), []
    for run in (process.run_first, process.run_all):
        assert run(lambda: calls.append(1) or "result") == "result"
    assert calls == [1, 1]


@pytest.mark.parametrize("error", [OSError("gone"), ConfigError("wrong option")])
def test_an_error_of_one_process_is_raised_as_it_is(error):
    def fail():
        raise error

    process = Processes()
    for run in (process.run_first, process.run_all):
        with pytest.raises(type(error)) as raised:
            run(fail)
        assert raised.value is error
        assert is_known_to_all(error), "one process tells of it"


def test_ctrl_c_waits_for_no_other_process():
    def interrupt():
        raise KeyboardInterrupt

    for run in (Processes().run_first, Processes().run_all):
        with pytest.raises(KeyboardInterrupt):
            run(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Pretended().run_all(interrupt)  # it has no answer to give


def test_other_processes_return_what_the_first_one_found():
    # Nothing failed in the first, and then its result.
    process = Pretended(None, "found")
    assert not process.is_first
    assert process.run_first(broken) == "found", "the action is the first one's"
    assert Pretended(None).run_all(lambda: "own") == "own"


def test_an_error_elsewhere_ends_this_process_and_is_quoted():
    message = "process 0 failed: DataError: there is no folder"
    for name in ("run_first", "run_all"):
        process = Pretended("DataError: there is no folder")
        with pytest.raises(ConfigError, match=message) as raised:
            getattr(process, name)(lambda: "own")
        assert is_known_to_all(raised.value)


def test_an_error_here_is_raised_here_though_others_fail_too():
    with pytest.raises(OSError, match="the disk is gone"):
        Pretended("ValueError: other").run_all(broken)
    with pytest.raises(OSError, match="the disk is gone"):
        Pretended(None).run_all(broken)


@pytest.mark.parametrize(("count", "size"), [(7, 3), (2, 3), (0, 2), (5, 1)])
def test_shards_hold_every_value_once(count, size):
    values = list(range(count))
    shards = [Processes(rank, size).shard(values) for rank in range(size)]
    assert sorted(value for shard in shards for value in shard) == values
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_without_torchrun_there_is_one_process_and_nothing_is_initialised(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes(cuda=False) as process:
        assert process == Processes(rank=0, world_size=1, local_rank=0)
        assert not torch.distributed.is_initialized()


# Programs


@pytest.fixture
def fork(monkeypatch):
    """Starts processes that need not wait for torch, which their server imported."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["captum_unioncam.evaluation.runner"])

    def start(arguments):
        process = server.Process(target=run_command, args=(arguments,))
        process.start()
        return process

    return start


def test_a_run_killed_at_random_moments_ends_with_the_same_table(
    images, tmp_path, options, reference, fork
):
    chance = random.Random(0)
    arguments = command(images, tmp_path, *options)
    path = tmp_path / "rows-00000.jsonl"
    for death in range(3):
        process = fork([*arguments, *(["--resume"] if death else [])])
        wanted = 2 * death + 1
        while process.is_alive() and (
            not path.exists() or path.read_bytes().count(b"\n") < wanted
        ):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        rows = path.read_bytes().count(b"\n")
        assert wanted <= rows < 10
        assert not (tmp_path / "report.json").exists()
    with path.open("ab") as file:
        file.write(b'{"index": 4, "id": "4.p')  # torn in the middle of a line
    process = fork([*arguments, "--resume"])
    process.join()
    assert process.exitcode == 0
    assert results(tmp_path) == reference


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_give_the_figures_of_one(
    images, tmp_path, small, options, reference, ranks
):
    # Three ranks and two images: one rank has nothing to do.
    few = ["--num-images", "2"] if ranks == 3 else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={ranks}", "-m", "captum_unioncam"]
    process = subprocess.run(
        [*torchrun, *command(images, tmp_path / "many", *options, *few)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    if ranks == 3:
        evaluate(config(images, tmp_path / "one", num_images=2, **small))
        reference = results(tmp_path / "one")
    assert results(tmp_path / "many") == reference
    counts = [
        len(path.read_text().splitlines())
        for path in sorted((tmp_path / "many").glob("rows-*.jsonl"))
    ]
    assert counts == ([6, 4] if ranks == 2 else [2, 2, 0])
    assert process.stdout.count("report.md") == 1
