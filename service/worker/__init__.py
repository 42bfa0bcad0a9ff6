"""A node: takes parts of attempts, executes them, and reports what they do. Blind to the trainer: a command, a spool, beats, an exit code.

__main__.py   the process: arguments and signals
settings.py   what an operator sets of a worker
loop.py       polls: says what the worker holds, learns what to start and to stop
attempt.py    one attempt here, from offer to exit report, in a thread of its own
offers.py     what an offer means on this machine
link.py       the attempt's line to the API
shipping.py   the spool and the logs, byte for byte, through an API that may be away
job.py        the job's processes: start, stop, kill
stall.py      whether the job still moves
verdict.py    what the job's end means, in words
logtail.py    the end of a log, and what the launcher's says of its ranks
storage.py    the runs directory: which file system it is, the fence, the pins
machine.py    what this machine offers
"""
