"""Claims runs, executes their jobs and reports what they do. Blind to the trainer: a command, an event spool, an exit code.

__main__.py   the process: arguments and signals
loop.py       claims, and one attempt from claim to exit report
link.py       the attempt's line to the API: heartbeats and reports
job.py        the job's processes: start, stop, kill
shipping.py   the spool and the logs, byte for byte, through an API that may be away
verdict.py    what the job's end means, in words
machine.py    what this machine offers
"""
