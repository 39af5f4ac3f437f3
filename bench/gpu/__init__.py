"""Stages of `make gpu`: one module each, run one after another by a worker process."""
