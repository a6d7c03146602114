"""SSH to the cluster: only to hosts whose key the user knows."""

from __future__ import annotations


def refuse_unknown_hosts() -> None:
    """Let fabric, which takes any host for the one meant, believe ``known_hosts`` only.

    For this process, before connections are made; a host that is not in the user's file, or whose
    key has changed, is refused.
    """
    import fabric.connection
    import paramiko

    class Client(paramiko.SSHClient):
        """A client that knows the hosts that the user knows."""

        def __init__(self) -> None:
            super().__init__()
            self.load_system_host_keys()

    fabric.connection.SSHClient = Client
    fabric.connection.AutoAddPolicy = paramiko.RejectPolicy
