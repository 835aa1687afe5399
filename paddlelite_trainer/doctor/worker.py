"""python -m paddlelite_trainer.doctor.worker GROUP OUT [--quick]: runs one group of checks and writes its findings."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .finding import Finding, failed

Check = Callable[[], "Finding | list[Finding]"]


def main() -> None:
    group, out = sys.argv[1], Path(sys.argv[2])
    with out.open("a") as file:
        try:
            checks: Iterator[tuple[str, Check]] = importlib.import_module(f".{group}", __package__).checks(
                "--quick" in sys.argv
            )
        except Exception as error:  # Paddle itself cannot be imported
            print(json.dumps({"finding": failed(group, error).as_dict()}), file=file, flush=True)
            return
        for name, check in checks:
            print(json.dumps({"began": name}), file=file, flush=True)
            try:
                found = check()
            except Exception as error:
                found = failed(name, error)
            for one in found if isinstance(found, list) else [found]:
                print(json.dumps({"finding": one.as_dict()}), file=file, flush=True)


if __name__ == "__main__":
    main()
