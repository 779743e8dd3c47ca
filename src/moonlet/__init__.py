"""moonlet: the whole of a Kimi-K2.5-class system in one package, at any size."""

__version__ = "0.1.0.dev0"
