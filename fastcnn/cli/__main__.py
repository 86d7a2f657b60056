"""`python -m fastcnn.cli`, and so for several processes `torchrun --nproc-per-node 2 -m fastcnn.cli train lenet`."""

import sys

from fastcnn.cli import main

sys.exit(main())
