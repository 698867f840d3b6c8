import os

# One thread a process: the sums of a test must not depend on the machine's cores, and the workers
# that tests start would otherwise fight over them.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
