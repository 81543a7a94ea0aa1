"""A model of data-parallel training: how long a step takes on N devices, and what of it is spent where.

network     what a VGG's layers compute, read, write and hold           (counted from the network itself)
device      seconds of each layer, forward and backward                 (roofline, scaled to a measured step if there is one)
link        seconds of an all-reduce: ring, tree, hierarchical          (latency and bandwidth; NCCL's own tuning model)
exchange    what travels: plain, compressed, low rank, now and then     (bytes and extra work of each bucket)
step        the buckets' schedule under the backward pass               (PyTorch's DistributedDataParallel)
published   what others have measured, and the model's answer to it
"""
