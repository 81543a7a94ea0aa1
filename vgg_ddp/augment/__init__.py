"""Augmentation as pure functions: of pixels, and of parameters that follow from (seed, epoch, position) alone.

`geometry` says where each pixel of the network's input comes from, `pixels` takes it from there, `appearance` changes how it
looks. A loader decodes each image and scales its box to a square; everything that works on squares of one size is done
here, for a whole batch on its device, by the same code for every loader.
"""
