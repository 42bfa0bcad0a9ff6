"""Seeded faults on a real control plane with real, small training runs; and a count of everything that must not happen.

proxy.py    HTTP between workers and API: requests lost, replies lost, duplicated, late; TCP between API and Redis: cut
stack.py    the processes: Redis, API, workers, each restarted when it dies
faults.py   what can go wrong, each a function of the stack
__main__.py the run of it, and the counts
"""
