"""Run as a script, in a process of its own: loads what was exported as a deployment does, and computes with it.

A program that Paddle's or ONNX's runtime cannot bear ends this process, and no training. Argument: a JSON file with
`format`, `program`, `parameters`, `onnx`, `opset`, `optimize`, and `runs`, pairs of .npz files, inputs and outputs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]

import numpy as np  # noqa: E402

Run = Callable[[dict[str, Any]], list[tuple[str, Any]]]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    run = by_onnxruntime(job) if job["format"] == "onnx" else by_paddle(job)
    for inputs, outputs in job["runs"]:
        with np.load(inputs) as given:
            found = run({name: np.ascontiguousarray(given[name]) for name in given.files})
        np.savez(outputs, **{f"{index:04d} {name}": value for index, (name, value) in enumerate(found)})


def by_paddle(job: dict[str, Any]) -> Run:
    from paddle import inference

    config = inference.Config(job["program"], job["parameters"])
    config.disable_gpu()
    config.disable_glog_info()
    config.switch_ir_optim(job["optimize"])
    predictor = inference.create_predictor(config)

    def run(inputs: dict[str, Any]) -> list[tuple[str, Any]]:
        for name in predictor.get_input_names():
            predictor.get_input_handle(name).copy_from_cpu(inputs[name])
        predictor.run()
        return [(name, predictor.get_output_handle(name).copy_to_cpu()) for name in predictor.get_output_names()]

    return run


def by_onnxruntime(job: dict[str, Any]) -> Run:
    import onnxruntime

    if not os.path.exists(job["onnx"]):
        convert(job)
    session = onnxruntime.InferenceSession(job["onnx"], providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def run(inputs: dict[str, Any]) -> list[tuple[str, Any]]:
        wanted = {value.name: inputs[value.name] for value in session.get_inputs()}
        return list(zip(names, session.run(names, wanted)))

    return run


def convert(job: dict[str, Any]) -> None:
    import paddle2onnx

    options: dict[str, Any] = {"opset_version": job["opset"], "enable_onnx_checker": True}
    if int(paddle2onnx.__version__.split(".")[0]) >= 2:
        options["optimize_tool"] = "None"  # the other one, polygraphy, installs packages from the network by itself
    paddle2onnx.export(job["program"], job["parameters"], job["onnx"], **options)


if __name__ == "__main__":
    main()
