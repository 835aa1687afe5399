"""How several workers share the tests: a file is one worker's, as its fixtures serve all of it, and long ones begin.

Both hold for `pytest -n 2` as it stands; whoever gives `--dist` has it in that way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Those of ranks beside those of one process, which leave a core to them. What is not here takes seconds.
LONG = """
test_on_fake_gpu.py
distributed/test_several_devices.py
distributed/test_sharded_saves.py
resume/test_ends_of_a_run.py
""".split()


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
