"""Fixtures that several rooms of tests ask for."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other make tiny nets very slow on a busy machine.

    One rounds the same in every process, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
