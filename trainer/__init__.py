"""The training job: reads images, trains encoder and instance classifier, evaluates and exports. It knows no network."""
