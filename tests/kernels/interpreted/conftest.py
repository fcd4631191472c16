"""For processes that interpret Triton kernels from the start; `tests/kernels/test_interpret.py` makes one."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
