"""The inference pass before training, in which only the BatchNorm statistics run: no weight changes.

Its features are the contrastive prior: each class row starts as its image's feature under the random encoder (paper,
"contrastive prior"). Its statistics make the random encoder a fair baseline: without them its kNN accuracy is lower (LOG.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from service.spec import RunSpec
from trainer.classifier import InstanceClassifier
from trainer.data.images import ImageFolder
from trainer.data.loader import iterate_images, normalise
from trainer.data.sampler import epoch_order
from trainer.process import Process
from trainer.watch import Watch


@torch.no_grad()
def first_pass(
    encoder: nn.Module, classifier: InstanceClassifier, folder: ImageFolder, spec: RunSpec, process: Process, watch: Watch
) -> None:
    """Run the statistics and, with initialisation prior, fill the classifier's rows. Raises StopAgreed.

    Every rank encodes its share of the shuffled images: batches in the order of the paths would be of one kind of image, and
    their BatchNorm statistics with them.
    """
    order = torch.from_numpy(epoch_order(len(folder), spec.seed, 0).copy())
    share = order[process.rank :: process.world_size]
    most = -(-len(order) // process.world_size)
    num_batches = -(-most * process.world_size // spec.optimizer.global_batch_size)
    batch_size = -(-most // num_batches)
    # Every rank runs the same number of batches, all of one size: the last images are repeated, and set no row (-1).
    repeated = num_batches * batch_size - len(share)
    instance_n = torch.cat([share, share.new_full((repeated,), -1)])
    share = torch.cat([share, order.repeat(-(-repeated // len(order)))[:repeated]])
    images_in_order = iterate_images(folder, share.numpy(), spec.data.image_size, batch_size, spec.data.num_workers)
    dtype = next(encoder.parameters()).dtype
    encoder.train()
    for (images, _), instance_b in zip(images_in_order, instance_n.split(batch_size), strict=True):
        x_bD = encoder(normalise(images.to(process.device), spec.data.mean, spec.data.std).to(dtype))
        if spec.classifier.initialisation == "prior":
            # Unit norm: the cosine ignores a row's length, but a step turns a row by an angle inverse to it.
            classifier.write_rows(instance_b.to(process.device), F.normalize(x_bD.float(), dim=1))
        watch.batch()
