"""Benchmarks: ratios from one run against something a user knows. `make bench` runs them all; figures seen are in
docs/benchmarks.md."""
