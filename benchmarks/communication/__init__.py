"""The cost of communication between two ranks: `python -m benchmarks.communication`.

choices    the configurations of `communication` that are compared
rank       a rank's process, which measures what it is asked for
link       two ranks with a link of a given bandwidth, and the speed of each choice over it
training   the effect of each choice on the result: steps to a training loss, test accuracy
report     both together, as tables and a picture
"""
