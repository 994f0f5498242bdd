"""Which of several processes this is: apart from :mod:`.distributed`, as all that write files ask it.

Stages that train nothing do so without importing torch, and do not depend on its version.
"""

import os


def rank() -> int:
    """Number of this process among those that train together, 0 for the first or only one.

    Known from the start, before the processes have met: what is written or tracked once asks it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("LOCAL_RANK", 0))  # Lightning's own children
