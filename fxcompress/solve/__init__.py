"""Solvers without graphs: maximum flow and minimum cut, and the allocation of representations."""
