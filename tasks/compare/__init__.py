"""Does this codec make my audio language model better? Replications that differ in the codec alone, and a verdict.

`replicate.replicate` makes one: tokens, a language model, what it generates, scores by item. `pipeline.compare` makes
them for every codec and seed, and judges the paired differences (docs/compare.md).
"""
