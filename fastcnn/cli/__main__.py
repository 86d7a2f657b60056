"""`python -m fastcnn.cli`, which is how torchrun starts it: `torchrun --nproc-per-node 2 -m fastcnn.cli train lenet`."""

import sys

from fastcnn.cli import main

sys.exit(main())
