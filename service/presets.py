"""Named starting points. A document that says `preset: NAME` states only what differs."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's settings: ResNet-50, 64 V100 (8 nodes of 8), batch 4096, lr 0.48 = 0.03 x 4096 / 256, cosine with 10
    # warm-up epochs, weight decay 1e-4, momentum 0.9, D = 128, tau = 0.15, alpha = 0.2, contrastive prior.
    # Our choice, since the paper does not state it: K = 50 and how the hardest classes are found, 200 epochs, one view
    # per image, the projector's width and BatchNorm, rows with the encoder's learning rate and decay, BatchNorm per rank, ZeRO stage 1
    # (fp16 needs it; V100 has no bf16), checkpoints, evaluation.
    "imagenet-1m": {
        "data": {"image_size": 224, "num_workers": 8},
        "backbone": {"name": "resnet50"},
        "classifier": {"embedding_size": 128, "temperature": 0.15, "smoothing": 0.2, "hardest_k": 50},
        "optimizer": {
            "global_batch_size": 4096,
            "learning_rate": 0.48,
            "weight_decay": 1e-4,
            "momentum": 0.9,
        },
        "schedule": {"epochs": 200, "warmup_epochs": 10},
        "precision": "fp16",
        "zero_stage": 1,
        "resources": {"nodes": 8, "ranks_per_node": 8, "device": "cuda"},
        "checkpoints": {"every_epochs": 1.0, "keep_last": 3},
        "evaluation": {"every_epochs": 10},
        "log_every_steps": 50,
    },
    # 50,000 images of 32 pixels, ResNet-18, one GPU or two CPU ranks. All our choice.
    "cifar10": {
        "data": {"image_size": 32, "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]},
        "backbone": {"name": "resnet18"},
        "augmentation": {"grayscale": 0.1, "blur": 0.0},
        "optimizer": {
            "global_batch_size": 256,
            "learning_rate": 0.1,
            "classifier_learning_rate": 1.0,
            "classifier_weight_decay": 0.0,
        },
        "schedule": {"epochs": 200, "warmup_epochs": 5},
        "evaluation": {"k": 200, "temperature": 0.1, "every_epochs": 5},
    },
    # A ResNet small enough for two CPU cores; minutes. The views suit small figures in the middle, such as digits: mild crops, no
    # mirror (LOG.md). All our choice.
    "demo": {
        "name": "demo",
        "data": {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 0], "channels": [32, 64, 128, 128]}},
        "augmentation": {"crop_scale": [0.7, 1.0], "horizontal_flip": 0.0, "grayscale": 0.0, "blur": 0.0, "hue": 0.0},
        "optimizer": {
            "global_batch_size": 128,
            "learning_rate": 0.1,
            "classifier_learning_rate": 1.0,
            "classifier_weight_decay": 0.0,
        },
        "schedule": {"epochs": 30, "warmup_epochs": 1},
        "resources": {"ranks_per_node": 2},
        "evaluation": {"every_epochs": 5},
        "log_every_steps": 5,
    },
}
