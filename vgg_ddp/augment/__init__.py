"""Augmentation as pure functions: of pixels, and of parameters that follow from (seed, epoch, position) alone.

`geometry` says where each pixel of the network's input comes from, `pixels` takes it from there, `appearance` changes how it
looks. A loader decodes, and scales each image by its own box; all that works on equal squares is done here for a whole
batch on its device, by the same code whatever the loader.
"""
