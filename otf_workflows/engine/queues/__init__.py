"""Batch queues: what is asked of them, who fills them, and what became of each batch job.

``system`` talks to Slurm, PBS or SGE and knows nothing of campaigns; ``launcher`` compares its
list with ``jobs`` (our own book) and the launch pad, lets ``judge`` find out what became of lost
batch jobs, ``retries`` decide what follows, and ``submitter`` fill the queues.
"""
