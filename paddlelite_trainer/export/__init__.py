"""A module as files that other programs load: an inference program, ONNX, or its weights."""
