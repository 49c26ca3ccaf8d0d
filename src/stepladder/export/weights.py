"""Weights that several graphs of one model hold, written once, to a file beside them.

    before    decoder.onnx, stage0.onnx, ...    each with all the weights of the network
    after     decoder.bin                       every different array once, at a multiple of 64 bytes
              decoder.onnx, stage0.onnx, ...    where in it each array lies

In ONNX these are external data, which names the file. Graphs of OpenVINO hold offsets alone: `decoder.xml` finds
`decoder.bin` by its name, and to the others it has to be named.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from stepladder.export.backends import Written

__all__ = ["share_weights"]

_ALIGNMENT = 64
_SMALLEST = 1024
"""Bytes of an array of ONNX that moves. Shapes and other small ones stay in the graph, which engines read them from."""


def share_weights(graphs: Mapping[str, Written]) -> dict[str, Written]:
    """Moves the weights of graphs of one format, in one folder, to a file that has the name of the first of them.

    Graphs that share weights already may be among them, as long as all that use the same file are.
    """
    first = next(iter(graphs.values())).files[0]
    target, place = first.with_suffix(".bin"), first.with_suffix(".tmp")
    with place.open("wb") as stream:
        store = _Store(stream)
        contents = [_to_store(graph, store, target.name) for graph in graphs.values()]
    for graph, content in zip(graphs.values(), contents, strict=True):
        graph.files[0].write_bytes(content)
        if graph.weights:
            graph.weights.unlink(missing_ok=True)
    place.replace(target)
    return {name: Written(files=(graph.files[0], target)) for name, graph in graphs.items()}


class _Store:
    """Arrays one after the other, each content once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets: dict[bytes, int] = {}

    def place(self, content: bytes | memoryview) -> int:
        """Where the content lies, which is written if it is new."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._offsets:
            self._stream.write(bytes(-self._stream.tell() % _ALIGNMENT))
            self._offsets[digest] = self._stream.tell()
            self._stream.write(content)
        return self._offsets[digest]


def _to_store(graph: Written, store: _Store, location: str) -> bytes:
    """The graph, with its weights in the store."""
    file = graph.files[0]
    return _openvino(file, graph.weights, store) if file.suffix == ".xml" else _onnx(file, store, location)


def _onnx(file: Path, store: _Store, location: str) -> bytes:
    import onnx
    from onnx.external_data_helper import set_external_data

    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= _SMALLEST:
            offset = store.place(tensor.raw_data)
            set_external_data(tensor, location, offset=offset, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    content: bytes = model.SerializeToString()
    return content


def _openvino(file: Path, weights: Path | None, store: _Store) -> bytes:
    assert weights is not None, f"{file} has no weights"
    values = memoryview(weights.read_bytes())
    tree = ElementTree.parse(file)
    for data in tree.iterfind(".//layer[@type='Const']/data"):
        start, size = int(data.attrib["offset"]), int(data.attrib["size"])
        data.set("offset", str(store.place(values[start : start + size])))
    return ElementTree.tostring(tree.getroot(), encoding="utf-8", xml_declaration=True)
