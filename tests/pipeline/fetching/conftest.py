from support.hostile_server import server

__all__ = ["server"]
