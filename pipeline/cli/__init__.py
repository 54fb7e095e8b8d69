"""What a user types: `main` is the console script `wit`; one file for each group of commands."""

import signal
import threading

# Ctrl-C during the imports, which take a third of a second, ends the process without a traceback.
_IS_OURS = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _IS_OURS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    from pipeline.cli.main import main
finally:
    if _IS_OURS:
        signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["main"]
