"""What `paddlelite doctor` finds out: whether this machine, its devices and this build of Paddle do what they promise.

finding       One check's outcome: ok, a warning, failed, or not possible here; in words, with what to do.
examination   Runs the checks, each group in a process of its own, and puts the findings together.
machine       Checks without Paddle: shared memory, the disk.
build         Checks of this build of Paddle: versions, devices, kernels.
training      Checks of a fit on one device, beside a loop written by hand.
several       Checks between devices: starts `job` on each, which talks and trains.
worker        The process that runs one group.

Only `worker` and what it loads import Paddle, so a crash of it is a finding like others.
"""

from .examination import Examination as Examination
from .examination import examine as examine
from .finding import Finding as Finding
