"""Which nodes take connections, of those that Ray names."""

import socket

from shoal.cluster.answering import answering


def node(address, is_alive=True):
    return {"NodeManagerAddress": address[0], "NodeManagerPort": address[1], "Alive": is_alive}


def test_a_node_that_takes_no_connections_or_that_ray_gave_up_is_none():
    with socket.socket() as there, socket.socket() as gone:
        there.bind(("127.0.0.1", 0))
        there.listen()
        gone.bind(("127.0.0.1", 0))  # it does not listen: refused
        nodes = [
            node(there.getsockname()),
            node(gone.getsockname()),
            node(there.getsockname(), is_alive=False),
        ]
        assert answering(nodes) == nodes[:1]
    assert answering([]) == []
