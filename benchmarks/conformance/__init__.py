"""Does each reader return what the file says? Cases, truths and readers; `python -m benchmarks.conformance`."""
