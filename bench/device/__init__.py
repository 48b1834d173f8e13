"""Everything that only a GPU can tell, by one command: `python -m bench.device`.

Needs torch, triton and numpy, and neither the network nor an installed package. Sections run in the order of
`sections.SECTIONS`, the most important first: is it right, how fast are the kernels, what does a training step take.
A section is a set of named cases, each of which ends as one JSON line: measured, skipped with the reason, or failed
with the error. Cases run in processes of their own that are killed when their time is up, so that no crash, hang or
poisoned CUDA context ends the run.
"""
