"""What a run is: its specification, its life, its queue, and the worker that executes it. Imports neither torch nor deepspeed."""
