"""A class-conditional prior on the latents of a tokenizer.

model      the transformer
latents    the images of a labelled data set, encoded once
config     how a prior is trained
training   flow matching, with checkpoints
sampling   from noise to latents
scores     Frechet distance and seconds, through several decoders
neighbours the training images that are nearest to drawn ones
pictures   drawn images, decoder beside decoder
"""
