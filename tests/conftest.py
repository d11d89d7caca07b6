"""What several test modules share."""

import os
from collections.abc import Iterator

import pytest

from raydelta.cluster import SETTINGS


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One private Ray for all tests that need it: starting it takes seconds."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    # Without the dashboard a trial that Tune ends early blocks the next one for ever.
    ray.init("local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
