"""From a folder of images to batches of views: each batch follows from the seed and the step alone."""
