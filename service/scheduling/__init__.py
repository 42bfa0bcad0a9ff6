"""Who runs where, and why not yet. Pure functions of a snapshot of the cluster: no Redis, no clock, no HTTP.

model.py     what a decision is made from, and what it is
decide.py    the decisions of one pass
explain.py   why a queued run waits, and what would let it start; the answer to a plan
"""
