"""The pipeline: start -> stages -> build; every finished piece is kept, so an interrupted compile goes on where it was.

record    run folders: inputs, results, the lock
state     the program between two stages, and its scores
stages    what a strategy is made of
pipeline  the order of things
plan      what a compile would do and cost
matrix    the ablation of a strategy over seeds
progress  what is told meanwhile
live      ... and kept in the run folder
work      the ledger: what all of it used
"""

from mmc.compile.matrix import Matrix, run_matrix
from mmc.compile.pipeline import CompileJob, CompileResult, compile_spec
from mmc.compile.progress import Progress, Silent

__all__ = ["CompileJob", "CompileResult", "Matrix", "Progress", "Silent", "compile_spec", "run_matrix"]
