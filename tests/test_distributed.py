"""How the processes of a launch meet."""

import socket

import pytest

from fdtrain import distributed
from fdtrain.errors import UserError


def test_a_port_that_another_program_uses_is_named_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environment = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use.*--master_port {port + 1}"):
            distributed.open_store(30)
