"""`[[filters.python]]`: functions of the user's own, named in the config.

    def keep(pairs: pa.RecordBatch) -> tuple[mask, reasons]                          on = "pairs"
    def keep(pairs: pa.RecordBatch, images: list[np.ndarray]) -> tuple[mask, reasons]    on = "images"

`pairs` has the columns of PAIRS, on images those of FETCHED; an image is (height, width, 3) uint8, RGB. `mask` has one
bool for each pair: true stays. `reasons` is one name for all that go, or one for each pair. Names are made of a-z, 0-9
and _; the account shows them as python:<name>.

What a function decides must depend on its arguments only: units run in any order, on any worker, and perhaps twice.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, UserError, one_line
from pipeline.filters.text import REASON
from pipeline.records import PYTHON_REASON

Rule = Callable[..., tuple[Any, Any]]


def load_rule(call: str, base_dir: str) -> Rule:
    """Import `package.module:function`; modules beside the config are found too.

    Raises:
        ConfigError: there is no such function.
    """
    module_name, _, name = call.partition(":")
    if base_dir not in sys.path:
        sys.path.append(base_dir)
        importlib.invalidate_caches()
    try:
        rule = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"filters.python: {call}: {one_line(error)}; the module must be installed where workers run, "
            "or lie beside the config"
        ) from None
    if not callable(rule):
        raise ConfigError(f"filters.python: {call} is not a function")
    return rule


def rule_version(call: str, base_dir: str) -> list[str]:
    """Return what tells one version of a rule from another: its name, its module's source, and `__version__`.

    The version is that of the module, or of its package. Raise it when something else changes that the rule uses, such
    as a file of words.
    """
    rule = load_rule(call, base_dir)
    module = sys.modules[call.partition(":")[0]]
    try:
        source = Path(inspect.getsourcefile(module) or "").read_bytes()
    except (OSError, TypeError):  # compiled
        source = b""
    package = sys.modules.get(module.__name__.partition(".")[0])
    versions = (getattr(owner, "__version__", None) for owner in (rule, module, package))
    return [call, sha256(source).hexdigest(), str(next((v for v in versions if v is not None), ""))]


def rule_reasons(rule: Rule, call: str, arguments: Sequence[Any]) -> np.ndarray:
    """Return why each pair goes, (n,) REASON, "" where it stays; the first of `arguments` is the batch of pairs.

    Raises:
        UserError: the function fails, or does not return a mask and reasons.
    """
    rows = arguments[0].num_rows
    try:
        answer = rule(*arguments)
    except (Exception, SystemExit) as error:  # the user's function may raise any
        raise UserError(f"filters.python: {call} failed: {type(error).__name__}: {one_line(str(error))}") from error
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        kind = type(answer).__name__
        raise UserError(f"filters.python: {call} must return two things, a mask and reasons; it returned one {kind}")
    mask, reasons = answer
    try:
        keeps = np.asarray(mask.to_pylist() if isinstance(mask, pa.Array | pa.ChunkedArray) else mask)
    except ValueError:
        raise UserError(
            f"filters.python: {call} must return {rows} bools; it returned lists of several lengths"
        ) from None
    names = reasons.to_pylist() if isinstance(reasons, pa.Array | pa.ChunkedArray) else reasons
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if keeps.shape != (rows,) or keeps.dtype != bool:
        raise UserError(
            f"filters.python: {call} must return {rows} bools, one for each pair; it returned {_kind(keeps)}"
        )
    if isinstance(names, str):
        names = [names] * rows
    if not isinstance(names, Sequence) or len(names) != rows:
        shown = len(names) if isinstance(names, Sequence) else repr(names)
        raise UserError(f"filters.python: {call} must return one reason, or {rows}; it returned {shown}")
    found = ["" if stays else f"python:{name}" for stays, name in zip(keeps.tolist(), names, strict=True)]
    for name in set(found) - {""}:
        if PYTHON_REASON.fullmatch(name) is None:
            shown = name.removeprefix("python:")
            raise UserError(f"filters.python: {call}: the reason {shown!r} must be of a-z, 0-9 and _, at most 48")
    return np.array(found, REASON)


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
