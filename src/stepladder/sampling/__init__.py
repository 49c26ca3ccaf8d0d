"""The theory, without any network: path, ladder, denoisers, and the one loop that decodes.

In reading order: `flow` (one scale), `scales` (between two scales), `stages` (the ladder), `path` (inside a stage),
`denoiser` (the contract with networks), `guidance` and `tiling` (denoisers from denoisers), `grids` (times),
`steps` (kinds of steps), `sampler` (the loop).
"""
