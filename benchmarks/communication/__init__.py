"""What two ranks lose by talking. `python -m benchmarks.communication`.

rank       a rank's process: it takes what to measure, and says what it saw
link       two ranks with a link between them, and what each way of talking costs there
training   what each way does to the result: steps to a training loss, test accuracy
report     both together, as tables and a picture
"""
