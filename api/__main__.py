"""`python -m api`: the API in a process of its own. Settings: service/settings.py."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys

import structlog
import uvicorn

from api.app import create_app
from api.connections import Connection
from service.logs import configure_logs
from service.settings import from_environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="TCP port (default: %(default)s)")
    arguments = parser.parse_args()
    configure_logs()
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)  # uvicorn's own complaints
    try:
        settings = from_environment(os.environ)
    except ValueError as error:
        parser.error(str(error))
    log = structlog.get_logger()
    log.info("api_starting", url=f"http://{arguments.host}:{arguments.port}", state_dir=str(settings.state_dir))
    sys.setswitchinterval(0.001)  # so that a thread that computes (a pass of the scheduler) keeps no request waiting
    app = create_app(settings)
    # A full collection goes through everything that was imported, a third of a second in which no request is answered: what stands
    # now stays out of it, and the others come more seldom (LOG.md).
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    uvicorn.run(
        app,
        http=Connection,
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
