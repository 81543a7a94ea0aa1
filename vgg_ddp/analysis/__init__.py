"""How a network fails: pure functions over labels, probabilities and pixels. Nothing here reads or writes a file.

Words: a confusion matrix is an int array [classes, classes], rows are true classes, columns predicted ones. An interval is
a pair of ends at 95 % confidence.
"""
