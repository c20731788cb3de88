"""Benchmarks: the results of `australis bench`; its code is in src/australis/bench, installed with the product."""
