"""What the benchmarks share.

command       a command's options, its file of rows with the machine, its exit code
arithmetic    torch's settings of arithmetic, the same for all that is compared
rounds        rounds that alternate between what is compared, and their statistics
baseline      whether a run is faster or slower than stored runs, or whether the difference is noise
device_speed  the device's own rates: a large matrix product, a large copy, and the reference made of both
flops         the layers of a network and their arithmetic
step          the training loop's own step on a batch of noise
ranks         groups of ranks that wait for tasks, so that groups of several sizes can be measured in turns
two_hosts     two hosts on this machine: network namespaces with a link of a given bandwidth
energy        joules, from the counters of the GPU or the processor
pictures      bar charts
"""
