"""Images to train on and to evaluate on: one interface over folders, tar shards, Parquet files and hub data sets.

files      how bytes are read, and images that cannot be
folder, tar, parquet, hub      one adapter per kind of data, each an `ImageSource`
source     the interface, and `open_source`, which finds the adapter for a path
crops      random resized crops and flips
loading    the endless, resumable, shuffled stream of training batches, by random access
pairs      images with their latents beside them
pieces     data cut into parts that are read from front to back, here or from far away: tars, arrow, remote
streams    training batches from such parts, in lanes
protocol   the images of an evaluation, cut as the pinned protocol says
"""

from stepladder.data.crops import CropConfig, random_crop
from stepladder.data.files import Unreadable
from stepladder.data.lanes import StreamConfig
from stepladder.data.loading import TrainingBatch, TrainingCrops, training_loader
from stepladder.data.pairs import CodedImages, PairSource, evaluation_pairs, open_pairs, read_pair, stack_pairs
from stepladder.data.protocol import EvaluationImages, evaluation_images
from stepladder.data.source import ImageSource, open_source
from stepladder.data.streams import ImageStream, stream_pieces

__all__ = [
    "CodedImages",
    "CropConfig",
    "EvaluationImages",
    "ImageSource",
    "ImageStream",
    "PairSource",
    "StreamConfig",
    "TrainingBatch",
    "TrainingCrops",
    "Unreadable",
    "evaluation_images",
    "evaluation_pairs",
    "open_pairs",
    "open_source",
    "random_crop",
    "read_pair",
    "stack_pairs",
    "stream_pieces",
    "training_loader",
]
