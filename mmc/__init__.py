"""mmc: a declarative compiler for multi-module LM programs."""

__version__ = "0.1.0"
