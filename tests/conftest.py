"""How several workers share the tests: a file is one worker's, as its fixtures serve all of it, and long ones begin.

So it is for `pytest -n 2` as it stands; another `--dist` is obeyed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Several ranks beside one process where it can be, so that cores neither wait nor are fought for. What is not here
# takes seconds, and fills what is left in the end.
LONG = [
    "test_on_fake_gpu.py",
    "distributed/test_several_devices.py",
    "distributed/test_sharded_saves.py",
    "doctor/test_doctor.py",
    "house/test_examples.py",
    "distributed/test_failures_on_two_ranks.py",
    "resume/test_resume_from_every_step.py",
    "distributed/test_two_ranks.py",
    "machine/test_signals_while_waiting.py",
    "distributed/test_every_step.py",
    "resume/test_ends_of_a_run.py",
    "checkpoint/test_kill_at_any_instruction.py",
    "distributed/test_left_out.py",
    "resume/test_fuzzed_runs.py",
    "distributed/test_evaluations_on_two_ranks.py",
    "house/test_packaging.py",
    "distributed/test_checkpoints_on_two_ranks.py",
    "resume/test_interruptions.py",
    "distributed/test_two_nodes.py",
    "house/test_code_of_the_pages.py",
    "distributed/test_shape_changes.py",
    "machine/test_streams_that_end.py",
    "distributed/test_noise_at_the_start.py",
    "resume/test_changed_configuration.py",
    "reporting/test_stores.py",
    "machine/test_where_nothing_forks.py",
    "machine/test_cpu_threads.py",
    "resume/test_data_that_know_the_epoch.py",
    "callbacks/test_remote_on_s3.py",
    "data/test_spawned_workers.py",
    "data/test_loader_faults.py",
    "checkpoint/test_retention.py",
    "callbacks/test_retention_oracle.py",
    "configuration/test_configuration_files.py",
    "test_tuner.py",
    "data/test_loader_order.py",
    "test_architecture.py",
    "export/test_export.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False  # by the number of tests, which says nothing here
    return LoadFileScheduling(config, log)
