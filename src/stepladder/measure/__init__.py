"""Measurements of tokenizers.

metrics distance of images to their originals, without networks
profiling operations, memory, matrix-product peak, environment, without networks
evaluation       tokenizers x data x metrics -> a report, by the pinned protocol
reconstruction   one image there and back
summary a tokenizer in numbers: its parts, and the cost of an evaluation
contenders, benchmarking time and memory of decoders
"""
