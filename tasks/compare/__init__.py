"""Does this codec make my audio language model better? Replications that differ in the codec alone, and a verdict.

`replicate` makes one: tokens, a language model, what it generates, scores by item. `pipeline.compare` makes them for
every codec and seed, and judges the paired differences (docs/compare.md).
"""

from xcodec_lm.tasks.compare.replicate import replicate
from xcodec_lm.tasks.compare.replication import Replication, Task

__all__ = ["Replication", "Task", "replicate"]
