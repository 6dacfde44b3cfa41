"""Data preparation: manifests, checks, synthetic corpora, tokenization."""
