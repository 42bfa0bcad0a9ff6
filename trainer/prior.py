"""The inference pass before training, in which only the BatchNorm statistics run: no weight changes.

Its features are the contrastive prior: each class row starts as its image's feature under the random encoder (paper,
"contrastive prior"). Its statistics make the random encoder a fair baseline: without them its kNN accuracy is lower (LOG.md).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from service.spec import RunSpec
from trainer.classifier import InstanceClassifier
from trainer.data.images import Images
from trainer.data.loader import iterate_images, normalise
from trainer.data.sampler import permute
from trainer.process import Process
from trainer.watch import Watch


@torch.no_grad()
def first_pass(encoder: nn.Module, classifier: InstanceClassifier, images: Images, spec: RunSpec, process: Process, watch: Watch) -> None:
    """Run the statistics and, with initialisation prior, fill the classifier's rows. Raises StopAgreed.

    Every rank encodes its share of the shuffled images: batches in the order of the paths would be of one kind of image, and
    their BatchNorm statistics with them.
    """
    num_images = len(images)
    most = -(-num_images // process.world_size)
    num_batches = -(-most * process.world_size // spec.optimizer.global_batch_size)
    batch_size = -(-most // num_batches)
    # Every rank runs the same number of batches, all of one size: the first images come again at the end, and set no row (-1).
    position = np.arange(process.rank, num_batches * batch_size * process.world_size, process.world_size)
    instance_n = permute(position % num_images, num_images, spec.seed, 0)
    class_n = torch.from_numpy(images.classes(instance_n)).masked_fill(torch.from_numpy(_is_no_row(images, instance_n, position)), -1)
    batches = iterate_images(images, instance_n, spec, spec.data.image_size, batch_size, process.num_loaders(spec))
    dtype = next(encoder.parameters()).dtype
    encoder.train()
    for (pixels, _), class_b in zip(batches, class_n.split(batch_size), strict=True):
        x_bD = encoder(normalise(pixels.to(process.device), spec.data.mean, spec.data.std).to(dtype))
        if spec.classifier.initialisation == "prior":
            # Unit norm: the cosine ignores a row's length, but a step turns a row by an angle inverse to it.
            classifier.write_rows(class_b.to(process.device), F.normalize(x_bD.float(), dim=1))
        watch.batch()


def _is_no_row(images: Images, instance_n: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Of an image that comes again, and of all images of a class but the first: a row is written once, whatever the number of ranks."""
    is_repeated = position >= len(images)
    return is_repeated if images.class_n is None else is_repeated | (images.first_of_class()[images.classes(instance_n)] != instance_n)
