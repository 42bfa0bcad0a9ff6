"""The million-way instance classifier behind one call: `loss = classifier(x_bD, instance_b)`.

Nothing outside this package knows about shards. `build_classifier` chooses the implementation; `oracle.py` is the plain
unsharded one that the tests compare with.

Shape suffixes: b this rank's samples, B the samples of all ranks, n this rank's classes, N all classes, C one chunk of
classes, D embedding size, K hardest classes, P ranks. "Paper" is Liu et al., AAAI 2021.
"""

from trainer.classifier.build import build_classifier
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import SoftTargets
from trainer.classifier.zero3 import Zero3Classifier

InstanceClassifier = ShardedClassifier | Zero3Classifier

__all__ = ["InstanceClassifier", "ShardedClassifier", "SoftTargets", "Zero3Classifier", "build_classifier"]
