"""Networks x formats: how far what is exported is from the module, how large it is, and what is refused.

python tests/export/table.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
warnings.simplefilter("ignore")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import networks  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402
from models import quiet_trainer  # noqa: E402

from paddlelite_trainer.errors import TrainerError  # noqa: E402

numbers = np.random.RandomState(0)


def floats(*shape: int) -> Any:
    return paddle.to_tensor(numbers.randn(*shape).astype("float32"))


def words(*shape: int, most: int = 30) -> Any:
    return paddle.to_tensor(numbers.randint(0, most, shape))


NETWORKS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "resnet18": (lambda: networks.Vision("resnet18"), [floats(4, 3, 64, 64)]),
    "mobilenet_v2": (lambda: networks.Vision("mobilenet_v2"), [floats(4, 3, 64, 64)]),
    "LSTM tagger": (networks.Tagger, [words(4, 9)]),
    "transformer": (networks.Transformer, [words(4, 12)]),
    "two inputs": (networks.TwoInputs, [words(8, 5, most=10), floats(8, 5)]),
    "dict input": (networks.DictInput, [{"image": floats(6, 4), "more": [floats(6, 4)]}]),
    "CTC reader": (networks.Reader, [floats(4, 1, 32, 64)]),
    "branches": (networks.Branches, [floats(8, 4)]),
    "reads numbers": (networks.Untraceable, [floats(8, 4)]),
    "another when traced": (networks.OtherWhenTraced, [floats(8, 4)]),
    "no forward": (networks.NoForward, [floats(8, 4)]),
}


def main() -> None:
    print(f"Paddle {paddle.__version__}")
    print(f"{'network':<21}{'format':<13}{'max difference':<16}files")
    for name, (make, inputs) in NETWORKS.items():
        paddle.seed(0)
        module = make()
        for format in ("inference", "onnx", "safetensors", "pdparams"):
            trainer = quiet_trainer()
            trainer.print = lambda *_: None  # type: ignore[method-assign]
            with tempfile.TemporaryDirectory() as folder:
                try:
                    made = trainer.export(Path(folder) / "m", format, None, inputs, model=module)  # type: ignore[arg-type]
                except TrainerError as error:
                    left = os.listdir(folder)
                    told = str(error).replace(folder, "").replace(f"{ROOT}/", "").replace("\n    ", " ").splitlines()
                    print(f"{name:<21}{format:<13}refused         {' '.join(told)[:230]}{' LEFT ' if left else ''}")
                    continue
                sizes = ", ".join(f"{path.name} {nbytes:,}" for path, nbytes in made.files.items())
                notes = f"  {made.notes[0][:60]}..." if made.notes else ""
                print(f"{name:<21}{format:<13}{made.max_difference:<16.2e}{sizes}{notes}", flush=True)


if __name__ == "__main__":
    main()
