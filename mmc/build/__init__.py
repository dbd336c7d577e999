"""What a compile leaves behind: a folder that runs, serves, compiles again and can be read in git.

folder    assembles it, whole or not at all
program   the spec's own text with new paths, templates and adapters
lock      hashes, revisions and versions of everything that went in
manifest  scores of every stage
card      the model card of an adapter
diff      what differs between two specs or builds
verify    whether a build is still what its lock says
example   the examples that come with mmc, as somebody's own project
"""

from mmc.build.folder import BuildJob, write_build
from mmc.build.manifest import Manifest, StageScore, Work

__all__ = ["BuildJob", "Manifest", "StageScore", "Work", "write_build"]
