"""Benchmarks, run in a checkout as `python -m benchmarks.NAME`: docs/benchmarks.md lists them.

The modules here are the commands; `measurement`, `scaling_model` and `communication` hold what they share.
"""
