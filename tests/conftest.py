"""Fixtures that several rooms of tests ask for, and the profiles of hypothesis."""

import os

import hypothesis
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core
    torch.set_num_threads(1)

# Continuous integration draws the same cases each time; ``long`` is for a while by
# hand: pytest tests/test_properties.py --hypothesis-profile=long
COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.filter_too_much,
    ],
}
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=120, **COMMON)
hypothesis.settings.register_profile("long", max_examples=2000, **COMMON)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run what takes minutes too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; --slow runs it"))


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other make tiny nets very slow on a busy machine.

    One rounds the same in every process, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
