"""Writes a BERT or MPNet sentence encoder as an ONNX graph: token numbers and mask in, unit-length mean of the last states out.

    export.py ENCODER_DIR OUT.onnx

Needs onnx, numpy and safetensors. The graph is made of plain operators, as exporters write it; ONNX Runtime fuses them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file


class Graph:
    def __init__(self, weights):
        self.weights, self.nodes, self.constants = weights, [], {}

    def constant(self, name, values):
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def weight(self, name):
        return self.constant(name, self.weights[name])

    def number(self, value):
        return self.constant(f"number {value}", np.array(value, np.float32))

    def sizes(self, *values):
        return self.constant(f"sizes {values}", np.array(values, np.int64))

    def op(self, kind, *inputs, output=None, **attributes):
        output = output or f"{kind} {len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def linear(self, rows, name):
        product = self.op("MatMul", rows, self.constant(f"{name}.weight.T", self.weights[f"{name}.weight"].T))
        return self.op("Add", product, self.weight(f"{name}.bias"))

    def normalise(self, rows, name, epsilon):
        centred = self.op("Sub", rows, self.op("ReduceMean", rows, self.sizes(-1)))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.number(2.0)), self.sizes(-1))
        scaled = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.number(epsilon))))
        return self.op("Add", self.op("Mul", scaled, self.weight(f"{name}.weight")), self.weight(f"{name}.bias"))

    def gelu(self, rows):
        erf = self.op("Erf", self.op("Div", rows, self.number(2**0.5)))
        return self.op("Mul", self.op("Mul", rows, self.op("Add", erf, self.number(1.0))), self.number(0.5))


def relative_bias(weights, heads, length, far=128):
    """What MPNet adds to scores for the distance of two positions: [heads, length, length]."""
    table = weights["encoder.relative_attention_bias.weight"]
    buckets = table.shape[0] // 2
    near = buckets // 2
    behind = np.arange(length)[:, None] - np.arange(length)[None, :]
    distance = np.abs(behind)
    log = near + np.log(np.maximum(distance, 1) / near) / np.log(far / near) * (buckets - near)
    bucket = np.where(distance < near, distance, np.minimum(log.astype(np.int64), buckets - 1))
    return table[bucket + np.where(behind < 0, buckets, 0)].transpose(2, 0, 1).reshape(heads, length, length)


# Names of a layer's attention: projections, output, norm.
BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm")
MPNET = ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm")


def export(folder, out):
    config = json.loads((folder / "config.json").read_text())
    graph = Graph(load_file(folder / "model.safetensors"))
    op, width, heads = graph.op, config["hidden_size"], config["num_attention_heads"]
    epsilon, embeddings = config["layer_norm_eps"], "embeddings."
    mpnet = config["model_type"] == "mpnet"
    q, k, v, o, norm = MPNET if mpnet else BERT

    length = op("Gather", op("Shape", "input_ids"), graph.sizes(1))
    places = graph.weights[f"{embeddings}position_embeddings.weight"]
    if mpnet:
        places = places[config["pad_token_id"] + 1 :]
    else:
        places = places + graph.weights[f"{embeddings}token_type_embeddings.weight"][0]
    table = graph.constant("positions", places)
    positions = op("Slice", table, graph.sizes(0), length, graph.sizes(0))
    words = op("Gather", graph.weight(f"{embeddings}word_embeddings.weight"), "input_ids")
    hidden = graph.normalise(op("Add", words, positions), f"{embeddings}LayerNorm", epsilon)

    mask = op("Cast", "attention_mask", to=TensorProto.FLOAT)
    absent = op("Sub", graph.number(1.0), op("Unsqueeze", mask, graph.sizes(1, 2)))
    bias = op("Mul", absent, graph.number(-10000.0))
    if mpnet:
        distances = graph.constant("distances", relative_bias(graph.weights, heads, len(places)))
        both = op("Concat", length, length, axis=0)
        bias = op("Add", bias, op("Slice", distances, graph.sizes(0, 0), both, graph.sizes(1, 2)))
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."

        def split(part, order):
            rows = graph.linear(hidden, f"{layer}{part}")
            return op("Transpose", op("Reshape", rows, graph.sizes(0, 0, heads, width // heads)), perm=order)

        query, key, value = split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]), split(v, [0, 2, 1, 3])
        scores = op("Div", op("MatMul", query, key), graph.number((width / heads) ** 0.5))
        weights = op("Softmax", op("Add", scores, bias), axis=-1)
        attended = op("Transpose", op("MatMul", weights, value), perm=[0, 2, 1, 3])
        attended = graph.linear(op("Reshape", attended, graph.sizes(0, 0, width)), f"{layer}{o}")
        hidden = graph.normalise(op("Add", attended, hidden), f"{layer}{norm}", epsilon)
        inner = graph.gelu(graph.linear(hidden, f"{layer}intermediate.dense"))
        output = graph.linear(inner, f"{layer}output.dense")
        hidden = graph.normalise(op("Add", output, hidden), f"{layer}output.LayerNorm", epsilon)
    present = op("Mul", hidden, op("Unsqueeze", mask, graph.sizes(-1)))
    op("LpNormalization", op("ReduceSum", present, graph.sizes(1), keepdims=0), output="embedding", axis=1, p=2)

    form = TensorProto.INT64, ["texts", "tokens"]
    inputs = [helper.make_tensor_value_info(name, *form) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", width])]
    made = helper.make_graph(graph.nodes, "encoder", inputs, outputs, list(graph.constants.values()))
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), out)


if __name__ == "__main__":
    export(Path(sys.argv[1]), sys.argv[2])
