"""A model of data-parallel training: the seconds of a step on N devices, and what they are spent on.

network      the layers of a VGG by its name                               (counted from the network itself)
device       seconds of each layer, forward and backward                   (roofline, scaled to a measured step if there is one)
link         seconds of an all-reduce: ring, tree, hierarchical            (latency and bandwidth; NCCL's own tuning model)
exchange     what is sent: plain, compressed, low-rank, periodic averages  (bytes and extra work of each bucket)
step         the buckets' schedule under the backward pass                 (PyTorch's DistributedDataParallel)
prediction   efficiency on machines that are not at hand
calibration  the model fitted to a machine at hand
measured     the measurements for that, and the model compared with measured steps
published    published measurements, and the model compared with them
pictures     charts of all of these
"""
