"""Benchmarks of seqkernels against torch.nn and other packages: `python -m bench --help`."""
