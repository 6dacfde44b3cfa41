"""Evaluation: one metric a file, pure functions over arrays."""
