"""What benchmarks compare, each in a process of its own that does a unit of work when asked (on_request.py)."""
