"""How many perturbed inputs go together: the search, with seconds that are made up."""

import gc
import weakref

import pytest
import torch

from captum_unioncam import _chunks
from captum_unioncam._chunks import CHUNKS_LEFT, TRIALS, ChunkSize, chunk_size

CPU = torch.device("cpu")
PLENTY = 10_000


@pytest.fixture
def clock(monkeypatch):
    """Lets the time pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(_chunks, "_time", lambda device: now[0])
    return now


def search(size, clock, seconds, chunks=100):
    """Runs chunks that take some seconds an input, by size, and returns the sizes."""
    sizes = []
    for _ in range(chunks):
        sizes.append(size.now)
        started = size.clock(CPU, PLENTY)
        clock[0] += seconds[size.now] * size.now
        size.record(started, CPU)
    return sizes


@pytest.mark.parametrize(
    "seconds, way",
    [
        ({2: 4, 3: 3, 4: 2, 6: 3, 8: 1}, [4, 3, 6, 4]),  # a valley at the guess
        ({2: 1, 3: 2, 4: 3, 6: 4, 8: 5}, [4, 3, 2]),  # down to the first
        ({2: 9, 3: 9, 4: 3, 6: 2, 8: 1}, [4, 3, 6, 8]),  # up to the last
        ({2: 5, 3: 1, 4: 2, 6: 3, 8: 3}, [4, 3, 2, 3]),
    ],
)
def test_it_goes_to_the_faster_neighbour_until_both_are_slower(clock, seconds, way):
    sizes = search(ChunkSize(4, (2, 3, 4, 6, 8)), clock, seconds)
    turns = [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    assert turns == way
    assert sizes[TRIALS - 1] == way[0] and sizes[TRIALS] == way[1]


def test_the_fastest_of_several_chunks_counts(clock):
    size = ChunkSize(4, (3, 4))
    for seconds in (9, 1, 9):  # of 4 inputs
        started = size.clock(CPU, PLENTY)
        clock[0] += 4 * seconds
        size.record(started, CPU)
    assert search(size, clock, {3: 2, 4: 2}, TRIALS + 1) == [3] * TRIALS + [4]


def test_a_given_size_and_a_short_call_are_not_timed(clock):
    assert ChunkSize(5).clock(CPU, PLENTY) is None
    assert ChunkSize(4, (3, 4)).clock(CPU, 4 * CHUNKS_LEFT - 1) is None
    assert ChunkSize(4, (3, 4)).clock(CPU, 4 * CHUNKS_LEFT) is not None


def test_what_does_not_fit_is_halved_for_good(clock):
    size = ChunkSize(64, (32, 64, 128))
    size.halve(64)
    assert size.now == 32 and size.clock(CPU, PLENTY) is None


def test_the_search_is_remembered_for_the_model_and_its_inputs():
    model, inputs = torch.nn.Linear(2, 2), torch.rand(3, 2)
    first = chunk_size(model, [inputs], None)
    assert chunk_size(model, [inputs[:1]], None) is first
    assert chunk_size(model, [inputs.double()], None) is not first
    assert chunk_size(model, [torch.rand(3, 4)], None) is not first
    assert chunk_size(torch.nn.Linear(2, 2), [inputs], None) is not first
    assert chunk_size(model, [inputs], 7) is not first
    assert chunk_size(model, [inputs], 7).now == 7


def test_a_model_is_not_kept_by_what_is_remembered_of_it():
    model = torch.nn.Linear(2, 2)
    chunk_size(model, [torch.rand(3, 2)], None)
    assert model in _chunks._SEARCHED
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_callable_without_weak_references_is_searched_anew():
    class Slotted:
        __slots__ = ()

        def __call__(self, inputs):
            return inputs

    model = Slotted()
    first = chunk_size(model, [torch.rand(3, 2)], None)
    assert chunk_size(model, [torch.rand(3, 2)], None) is not first
