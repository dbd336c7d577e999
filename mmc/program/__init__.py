"""The executable graph: built from a spec, run on examples, leaving trajectories.

expression  Jinja expressions in a spec
outputs     completion <-> a module's declared outputs
node        the nodes
steps       what stands where in a spec's steps
check       every static problem of a spec at once
bounds      fewest and most calls of a run
graph       Program
flowchart   the steps as a Mermaid chart
call        one LM call: inputs, request, completion
run         the async runner
judge       the score of a finished run, its LM judges asked
evaluate    scores
trajectory  what a run leaves
doctor      what this machine has, and what a spec would miss
"""
