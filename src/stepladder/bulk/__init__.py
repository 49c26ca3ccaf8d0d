"""Bulk coding: millions of images to latents and back, in shards, by many workers, with resume.

store      where files go: written whole, then published
manifest   which shards are done
options    what is done with each image
layouts/   latents in files, as trainers read them
encode     a shard of images becomes a shard of latents
decode     a shard of latents becomes a shard of images: latents, pictures, scores
job        what a worker is handed, and what it hands back
engines/   workers: processes here, or actors of Ray
run        the loop over shards: resume, progress, summary
jobs       the two jobs from end to end
"""
