"""Layouts of latents in files, one file of code for each."""

from stepladder.bulk.layouts.base import Layout
from stepladder.bulk.options import LayoutName

__all__ = ["build_layout"]


def build_layout(name: LayoutName) -> Layout:
    """The layout of a name."""
    match name:
        case "parquet":
            from stepladder.bulk.layouts.parquet import ParquetLayout

            return ParquetLayout()
        case "lightningdit":
            from stepladder.bulk.layouts.lightningdit import LightningDiTLayout

            return LightningDiTLayout()
        case "edm2":
            from stepladder.bulk.layouts.edm2 import Edm2Layout

            return Edm2Layout()
        case "npy":
            from stepladder.bulk.layouts.npy import NpyLayout

            return NpyLayout()
        case "webdataset":
            from stepladder.bulk.layouts.webdataset import WebDatasetLayout

            return WebDatasetLayout()
        case "mds":
            from stepladder.bulk.layouts.mds import MdsLayout

            return MdsLayout()
        case "jsonl":
            from stepladder.bulk.layouts.jsonl import JsonLinesLayout

            return JsonLinesLayout()
