"""ONNX networks with the published shapes of YOLOX and DWPose that find bright spots: no weights needed."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 9
CELL = 32  # pixels: the coarsest of YOLOX's grids, in which the spots are found
BRIGHT = 200.0


def save(path: Path, nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, constants: dict) -> Path:  # type: ignore[type-arg]
    """A graph as a file. inputs, outputs: name -> shape; constants: name -> array."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR
    onnx.save(model, str(path))
    return path


def person_network(path: Path, width: float = 96, height: float = 192, side: int = 640) -> Path:
    """YOLOX's shapes: a box of that size (pixels of the input) about each cell that holds a bright pixel."""
    cells = side // CELL
    fine = sum((side // s) ** 2 for s in (8, 16))
    box = np.zeros((1, cells * cells, 85), np.float32)
    box[..., :2], box[..., 2:4] = 0.5, np.log(np.array([width, height]) / CELL)
    box[..., 5] = 1  # class 0
    objectness = np.zeros((1, 1, 85), np.float32)
    objectness[..., 4] = 1
    nodes = [
        helper.make_node("ReduceMin", ["images"], ["gray"], axes=[1], keepdims=1),
        helper.make_node("MaxPool", ["gray"], ["peak"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["peak", "rows"], ["row"]),
        helper.make_node("Greater", ["row", "bright"], ["is"]),
        helper.make_node("Cast", ["is"], ["there"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["there", "objectness"], ["score"]),
        helper.make_node("Add", ["score", "box"], ["coarse"]),
        helper.make_node("Concat", ["fine", "coarse"], ["output"], axis=1),
    ]
    constants = {
        "rows": np.array([1, cells * cells, 1], np.int64), "bright": np.array(BRIGHT, np.float32),
        "objectness": objectness, "box": box, "fine": np.zeros((1, fine, 85), np.float32),
    }  # fmt: skip
    shapes = {"images": [1, 3, side, side]}, {"output": [1, fine + cells * cells, 85]}
    return save(path, nodes, *shapes, constants)


def shifted(points: int, length: int, far: int, seed: int = 0) -> np.ndarray:
    """For each point, where each place of a row takes its value from: points lie apart, about the spot."""
    apart = np.random.default_rng(seed).permutation(np.linspace(-far, far, points).round().astype(np.int64))
    return np.clip(np.arange(length) - apart[:, None], 0, length - 1)


def pose_network(
    path: Path, height: int = 384, width: int = 288, points: int = 133, score: float = 0.5
) -> Path:
    """SimCC's shapes: every point at the crop's brightest column and row, this score where white."""
    mean_max = np.float32((255 - 123.675) / 58.395)
    nodes = [
        helper.make_node("ReduceMin", ["input"], ["gray"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["gray"], ["columns"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["gray"], ["lines"], axes=[2], keepdims=0),
        helper.make_node("Unsqueeze", ["lines", "one"], ["rows"]),
    ]
    for name, out in (("columns", "simcc_x"), ("rows", "simcc_y")):
        nodes += [
            helper.make_node("Resize", [name, "", "twice"], [f"{name}2"], mode="nearest"),
            helper.make_node("Mul", [f"{name}2", "scale"], [f"{name}3"]),
            helper.make_node("Gather", [f"{name}3", f"{name}_shifted"], [f"{name}4"], axis=2),
            helper.make_node("Squeeze", [f"{name}4", "one"], [out]),
        ]
    constants = {
        "one": np.array([1], np.int64), "twice": np.array([1, 1, 2], np.float32),
        "scale": np.array(score / mean_max, np.float32),
        "columns_shifted": shifted(points, 2 * width, 60),
        "rows_shifted": shifted(points, 2 * height, 100, seed=1),
    }  # fmt: skip
    shapes = {"input": ["batch", 3, height, width]}, {
        "simcc_x": ["batch", points, 2 * width], "simcc_y": ["batch", points, 2 * height],
    }  # fmt: skip
    return save(path, nodes, *shapes, constants)
