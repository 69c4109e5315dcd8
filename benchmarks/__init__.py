"""Speed and memory of lorantk beside its peers: `make bench`, or `python -m benchmarks --help`."""
