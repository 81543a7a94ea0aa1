"""Images per second of the training step: `python -m benchmarks.throughput`.

cell        a setting of the grid
step        its step, timed by phase, its longest kernels, and the batches that it takes
plain       the plain loop beside it
prediction  what a step should take, and the roofline's picture
"""
