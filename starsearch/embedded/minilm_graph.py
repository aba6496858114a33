"""The weights of all-MiniLM-L6-v2 as an ONNX graph of onnxruntime's fused BERT operators.

Written by hand because torch, the usual exporter, is a gigabyte. Pooling and normalization follow the model's own
configuration (mean over tokens, unit length). Operators: onnxruntime's ContribOperators.md.
"""

import numpy as np
from numpy.typing import NDArray

RECIPE = "fused-1"
LAYERS, HEADS, EPSILON = 6, 12, 1e-12

Weights = dict[str, NDArray[np.float32]]


def build(safetensors: bytes) -> bytes:
    """The serialized graph: ids (n, s) int32, lengths (n,) int32, mask (n, s) float32 -> vectors (n, 384) float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load

    weights = _packed(load(safetensors))
    nodes = [
        helper.make_node(
            "EmbedLayerNormalization",
            ["ids", "", "words", "positions", "", "embedding.gamma", "embedding.beta"],
            ["hidden.0", "unused_mask"],
            domain="com.microsoft",
            epsilon=EPSILON,
        )
    ]
    for layer in range(LAYERS):
        nodes += _encoder_layer(layer)
    nodes += _mean_and_normalize(f"hidden.{LAYERS}")
    graph = helper.make_graph(
        nodes,
        "all-MiniLM-L6-v2",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", "s"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["n"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", "s"]),
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", 384])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def _packed(raw: Weights) -> Weights:
    """Weights as the fused operators want them: transposed, and query, key and value side by side."""
    packed = {
        "words": raw["embeddings.word_embeddings.weight"],
        # every text is one segment, so its embedding is part of the position's
        "positions": raw["embeddings.position_embeddings.weight"] + raw["embeddings.token_type_embeddings.weight"][0],
        "embedding.gamma": raw["embeddings.LayerNorm.weight"],
        "embedding.beta": raw["embeddings.LayerNorm.bias"],
        "axis": np.array([1], np.int64),  # type of an ONNX axis
        "last": np.array([-1], np.int64),
    }
    for layer in range(LAYERS):
        source = f"encoder.layer.{layer}."
        attention = [f"{source}attention.self.{part}." for part in ("query", "key", "value")]
        packed[f"{layer}.qkv"] = np.concatenate([raw[part + "weight"].T for part in attention], axis=1)
        packed[f"{layer}.qkv.bias"] = np.concatenate([raw[part + "bias"] for part in attention])
        for short, name in (("out", "attention.output"), ("down", "output")):
            packed[f"{layer}.{short}"] = np.ascontiguousarray(raw[f"{source}{name}.dense.weight"].T)
            packed[f"{layer}.{short}.bias"] = raw[f"{source}{name}.dense.bias"]
            packed[f"{layer}.{short}.gamma"] = raw[f"{source}{name}.LayerNorm.weight"]
            packed[f"{layer}.{short}.beta"] = raw[f"{source}{name}.LayerNorm.bias"]
        packed[f"{layer}.up"] = np.ascontiguousarray(raw[f"{source}intermediate.dense.weight"].T)
        packed[f"{layer}.up.bias"] = raw[f"{source}intermediate.dense.bias"]
    return packed


def _encoder_layer(n: int) -> list[object]:
    from onnx.helper import make_node

    def fused(kind: str, inputs: list[str], output: str, **attributes: object) -> object:
        return make_node(kind, inputs, [output], domain="com.microsoft", **attributes)

    before, middle, after = f"hidden.{n}", f"middle.{n}", f"hidden.{n + 1}"
    out, down = f"{n}.out", f"{n}.down"
    return [
        fused("Attention", [before, f"{n}.qkv", f"{n}.qkv.bias", "lengths"], f"attention.{n}", num_heads=HEADS),
        make_node("MatMul", [f"attention.{n}", out], [f"projected.{n}"]),
        fused("SkipLayerNormalization", _skip(f"projected.{n}", before, out), middle, epsilon=EPSILON),
        make_node("MatMul", [middle, f"{n}.up"], [f"up.{n}"]),
        fused("BiasGelu", [f"up.{n}", f"{n}.up.bias"], f"active.{n}"),
        make_node("MatMul", [f"active.{n}", down], [f"down.{n}"]),
        fused("SkipLayerNormalization", _skip(f"down.{n}", middle, down), after, epsilon=EPSILON),
    ]


def _skip(value: str, skip: str, norm: str) -> list[str]:
    return [value, skip, f"{norm}.gamma", f"{norm}.beta", f"{norm}.bias"]


def _mean_and_normalize(hidden: str) -> list[object]:
    from onnx.helper import make_node

    return [
        make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        make_node("Mul", [hidden, "mask3"], ["masked"]),
        make_node("ReduceSum", ["masked", "axis"], ["total"], keepdims=0),
        make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=1),
        make_node("Div", ["total", "count"], ["mean"]),
        make_node("LpNormalization", ["mean"], ["vectors"], axis=-1, p=2),
    ]
