"""Who runs where, and why not yet. Pure functions of a snapshot of the cluster: no Redis, no clock, no HTTP.

model.py     what a decision is made from, and what it is
decide.py    the decisions of one pass
order.py     in which order runs are tried
pool.py      free slots, and where a run fits
tenants.py   who is on which node, and until when
reserve.py   the nodes that a run could have first
preempt.py   who gives way to a run of higher priority
explain.py   why a queued run waits, and what would let it start; the answer to a plan
board.py     the arithmetic behind it
"""
