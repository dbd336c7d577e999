"""The work of a compile on a Ray cluster: Ray places workers, carries orders and results, and notices when a worker dies.

session     the cluster: connecting, how many workers it has room for, engines whose work is done there
pool        the workers as the driver sees them: started, asked, replaced when they die, named when they hang
engines     runs of programs over the workers; what the driver itself asks a model
learner     training over the workers: the batch is cut, every worker makes the same step
orders      what goes to a worker and comes back
worker      one worker: a process with the spec's engines
collective  sums of gradients over the workers, by torch.distributed

The driver holds what must not be lost (checkpoints, the journal, results that have come) and no model. Draws depend on the work
alone, so any worker can do any part of it again.
"""

from mmc.cluster.session import Cluster, connected

__all__ = ["Cluster", "connected"]
