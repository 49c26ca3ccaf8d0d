"""Bulk coding: millions of images to latents and back, in shards, by many workers, with resume.

store      where files go: written whole, then published
manifest   which shards are done
options    what is done with each image
layouts/   latents in files, as trainers read them
encode     a shard of images becomes a shard of latents
job        what a worker is handed, and what it hands back
engines/   workers: processes here, or actors of Ray
run        the loop over shards: plan, resume, progress, summary
"""
