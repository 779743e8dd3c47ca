"""What fits where, how fast it goes and what it costs: arithmetic over a configuration and a machine.

Imports no torch and touches no weights.
"""
