"""The executable graph: built from a spec, run on examples, leaving trajectories.

expression  Jinja expressions in a spec
outputs     completion <-> a module's declared outputs
node        the nodes
check       every static problem of a spec at once
graph       Program
run         the async runner
evaluate    scores
trajectory  what a run leaves
"""
