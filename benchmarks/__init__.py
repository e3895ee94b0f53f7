"""Benchmarks: one file per claim, ``python -m benchmarks`` runs them and keeps what they measured
in results/.
"""
