"""Models as graphs for other programs: ONNX, OpenVINO, and programs of `torch.export`.

    export_model(tokenizer, folder, Settings(backend="onnx"), name="photo")      graphs and a manifest, checked

In reading order: `graphs` (what is traced), `backends` (how a graph is written and run), `checks` (exported against
eager), `folder` (the whole export), `int8` (quantised by NNCF). `stepladder.runtime` runs the first two without torch.
"""

from stepladder.export.folder import Settings, export_model

__all__ = ["Settings", "export_model"]
