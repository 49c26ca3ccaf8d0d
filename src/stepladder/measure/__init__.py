"""What users ask of a tokenizer, and the services that answer.

metrics          how far images are from their originals; knows no network
profiling        operations, memory, matrix-product peak, environment; knows no network
evaluation       tokenizers x data x metrics -> a report, by the pinned protocol
reconstruction   one image there and back
summary          what a tokenizer is and what an evaluation of its network costs
contenders, benchmarking    how fast decoders are, each alone
"""
