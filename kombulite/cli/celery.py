"""``kombulite celery``: Celery's own command line, on kombulite."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from kombulite.aliasing import VARIABLE, as_kombu


def celery() -> NoReturn:
    """Run ``celery`` with the arguments that follow that word, in a process where kombu is kombulite.

    The processes that it starts find the same in their environment. Ends in SystemExit, with status 2 where Celery is
    missing.
    """
    if find_spec("celery") is None:
        print("kombulite: there is no Celery here: pip install celery", file=sys.stderr)
        sys.exit(2)
    os.environ[VARIABLE] = "1"
    as_kombu()
    # Celery's own script, with which a worker starts itself anew after SIGHUP.
    sys.argv[:2] = [str(Path(sys.executable).with_name("celery"))]
    from celery.__main__ import main

    main()
    sys.exit()
