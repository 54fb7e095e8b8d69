"""The limits of each host: what `[[fetch.hosts]]` says, else those of a known image CDN, else the general ones."""

import tomllib
from functools import cache
from importlib.resources import files

from pipeline.config.fetch import FetchConfig, HostConfig
from pipeline.fetching.hosts import HostLimits


@cache
def image_cdns() -> tuple[HostConfig, ...]:
    """Return the entries of image_cdns.toml."""
    known = tomllib.loads(files("pipeline.fetching").joinpath("image_cdns.toml").read_text(encoding="utf-8"))
    interval_s, concurrency = known["interval_s"], known["concurrency"]
    return tuple(HostConfig(match=name, interval_s=interval_s, concurrency=concurrency) for name in known["hosts"])


class HostRules:
    """Looks up the limits of a host by its name."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config

    def limits(self, host: str) -> HostLimits:
        """Return the limits of a host, over all processes together."""
        config = self._config
        interval_s, concurrency = config.host_interval_s, config.host_concurrency
        for entry in image_cdns():
            if entry.matches(host):
                interval_s = min(interval_s, entry.interval_s or 0.0)
                concurrency = max(concurrency, entry.concurrency or 1)
        named = [entry for entry in config.hosts if entry.matches(host)]
        return HostLimits(
            concurrency=next((entry.concurrency for entry in named if entry.concurrency is not None), concurrency),
            interval_s=next((entry.interval_s for entry in named if entry.interval_s is not None), interval_s),
            failures=config.host_failures,
        )
