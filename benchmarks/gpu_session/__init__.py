"""Everything that is to be measured and tested on a machine with a GPU, by one command.

stages        what is run, in which order, at which sizes
running       one stage after the other, with limits
environment   the first stage: what the machine is, and the rates that its device reaches
device_tests  the second: tests/gpu, and the outcome of each test
table         the figures of all stages in one table
"""
